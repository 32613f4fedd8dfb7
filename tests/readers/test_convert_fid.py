"""FiD and Atlas checkpoints, made here from tiny T5s, become T5 folders with the same logits."""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from btr.errors import InputError, UsageError
from btr.readers.convert_fid import (
    CROSS_BIAS,
    SHARED,
    convert_checkpoint,
    convert_names,
    main,
)
from btr.readers.digests import check_digests

SHAPE = {
    "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8,
}  # fmt: skip
# As the configurations of t5-base and of google/t5-base-lm-adapt say it.
VERSIONS = {
    "1.0": {**SHAPE, "decoder_start_token_id": 0, "n_positions": 512},
    "1.1": {
        **SHAPE,
        "decoder_start_token_id": 0,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}


class Wrapped(nn.Module):
    """What EncoderWrapper and CheckpointWrapper do to names."""

    def __init__(self, **inner: nn.Module) -> None:
        super().__init__()
        for name, module in inner.items():
            setattr(self, name, module)


def tiny(version: str) -> T5ForConditionalGeneration:
    """Random in every tensor, norms too, so that none can take another's place unseen."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**VERSIONS[version])).eval()
    if version == "1.1":  # built tied whatever the configuration says
        model.lm_head.weight = nn.Parameter(torch.empty(40, 16))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model


def fid_state(model: T5ForConditionalGeneration) -> dict[str, Tensor]:
    model = copy.deepcopy(model)
    model.encoder.block = nn.ModuleList(Wrapped(module=b) for b in model.encoder.block)
    model.encoder = Wrapped(encoder=model.encoder)
    state = model.state_dict()
    assert "encoder.encoder.block.0.module.layer.0.SelfAttention.q.weight" in state
    return {**state, CROSS_BIAS: torch.randn(8, 4)}


def atlas_file(state: dict[str, Tensor], prefix: str = "reader.") -> dict[str, object]:
    contriever = {"position_ids": torch.arange(4)[None], "word_embeddings.weight": torch.ones(4, 2)}
    model = {f"retriever.contriever.embeddings.{n}": t for n, t in contriever.items()}
    return {
        "step": 3,
        "model": {f"{prefix}{n}": t for n, t in state.items()} | model,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        "retr_optimizer": None,
        "opt": argparse.Namespace(name="tiny", device=torch.device("cpu"), betas=(0.9, 0.99)),
    }


def config_folder(folder: Path, version: str, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"model_type": "t5", "architectures": ["FiDT5"], **VERSIONS[version], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fid_folder(folder: Path, version: str, state: dict[str, Tensor] | None = None) -> Path:
    config_folder(folder, version)
    state = fid_state(tiny(version)) if state is None else state
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def logits(model: T5ForConditionalGeneration) -> Tensor:
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor([[3, 9, 27, 1], [5, 1, 0, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
            decoder_input_ids=torch.tensor([[0, 7, 9], [0, 30, 2]]),
        )
    return out.logits


def check_same(folder: Path, model: T5ForConditionalGeneration) -> None:
    check_digests(folder)
    loaded = T5ForConditionalGeneration.from_pretrained(folder)
    expected, found = model.state_dict(), loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # The same weights at other addresses: kernels may sum in another order.
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["pickled", "safetensors"])
def test_fid_folder(tmp_path: Path, version: str, kind: str) -> None:
    model = tiny(version)
    source = fid_folder(tmp_path / "fid", version, fid_state(model))
    if kind == "safetensors":  # without copies, under the name that happened to stay
        state = fid_state(model)
        for name in ("shared.weight", "decoder.embed_tokens.weight"):
            del state[name]
        if version == "1.0":
            del state["lm_head.weight"]
        save_file(state, tmp_path / "blob")
        (source / "model.safetensors").symlink_to(tmp_path / "blob")
        (source / "pytorch_model.bin").write_bytes(b"not looked at")
    done = convert_checkpoint(source, tmp_path / "new" / "t5")
    check_same(tmp_path / "new" / "t5", model)
    written = load_file(tmp_path / "new" / "t5" / "model.safetensors")
    assert done.tensors == len(written)
    assert ("lm_head.weight" in written) is (version == "1.1")
    assert (done.cross_bias, done.retriever, done.parts) == (True, 0, ())
    config = json.loads((tmp_path / "new" / "t5" / "config.json").read_text())
    tied = version == "1.0"
    assert (config["tie_word_embeddings"], config["scale_decoder_outputs"]) == (tied, tied)
    assert "n_positions" not in config


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("reader.", T5ForConditionalGeneration.state_dict),  # as the published code writes it
        ("reader.module.", T5ForConditionalGeneration.state_dict),  # sharded over GPUs
        ("module.reader.", fid_state),
    ],
)
def test_atlas_folder(
    tmp_path: Path, version: str, prefix: str, names: Callable[..., dict[str, Tensor]]
) -> None:
    model = tiny(version)
    (tmp_path / "atlas").mkdir()
    torch.save(atlas_file(names(model), prefix), tmp_path / "atlas" / "model.pth.tar")
    base = config_folder(tmp_path / "base", version)
    (tmp_path / "blob").write_bytes(b"pieces")
    (base / "spiece.model").symlink_to(tmp_path / "blob")  # as in the Hub's cache
    (base / "tokenizer_config.json").write_text("{}")
    done = convert_checkpoint(tmp_path / "atlas", tmp_path / "t5", base=base)
    check_same(tmp_path / "t5", model)
    assert (done.retriever, done.parts) == (2, ("step", "optimizer", "opt"))
    assert done.cross_bias is (names is fid_state)
    assert {p.name for p in (tmp_path / "t5").iterdir()} == {
        "config.json", "digests.json", "model.safetensors", "spiece.model", "tokenizer_config.json",
    }  # fmt: skip
    assert not (tmp_path / "t5" / "spiece.model").is_symlink()
    assert (tmp_path / "t5" / "spiece.model").read_bytes() == b"pieces"
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_bare_file_keeps_its_dtype(tmp_path: Path) -> None:
    model = tiny("1.1").to(torch.bfloat16)
    torch.save(dict(model.state_dict()), tmp_path / "state.pt")
    base = config_folder(tmp_path / "base", "1.1")
    convert_checkpoint(tmp_path / "state.pt", tmp_path / "t5", base=base)
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("own", [True, False])
def test_what_transformers_5_saves_is_taken(tmp_path: Path, own: bool) -> None:
    """It writes "tied" for v1.1 too, and leaves out an output layer that is the embedding."""
    model = tiny("1.1")
    if not own:
        model.lm_head.weight = model.shared.weight
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["tie_word_embeddings"]
    done = convert_checkpoint(tmp_path / "saved", tmp_path / "t5")
    assert not done.scaled
    check_same(tmp_path / "t5", model)


def test_own_output_layer_that_shares_memory_is_written(tmp_path: Path) -> None:
    model = tiny("1.1")
    model.lm_head.weight = model.shared.weight
    source = fid_folder(tmp_path / "fid", "1.1", fid_state(model))
    convert_checkpoint(source, tmp_path / "t5")
    check_same(tmp_path / "t5", model)


def test_names_of_a_t5_stay_as_they_are() -> None:
    names = list(tiny("1.1").state_dict())
    assert convert_names(names) == dict(zip(names, names, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "classifier.weight",
        "decoder.block.0.module.layer.0.layer_norm.weight",  # only encoders are wrapped
        "encoder.block.0.layer.0.SelfAttention.q.bias",
        "decoder.block.1.layer.1.EncDecAttention.relative_attention_bias.weight",
        "encoder.encoder.encoder.final_layer_norm.weight",
        "model.embeddings.weight",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="no place in a T5: " + name):
        convert_names(["shared.weight", name, "other"])


def test_two_tensors_for_one_place_are_refused() -> None:
    with pytest.raises(InputError, match="two tensors for one place"):
        convert_names(
            ["encoder.final_layer_norm.weight", "encoder.encoder.final_layer_norm.weight"]
        )


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if n != name}


def only_blocks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in state.items() if "embed" not in n and n != SHARED}


NORM = "decoder.final_layer_norm.weight"
FAULTS: dict[str, tuple[str, str, Callable[[dict[str, Tensor]], object]]] = {
    "missing": ("1.0", f"missing: {NORM}", lambda s: without(s, NORM)),
    "no output layer": ("1.1", "missing: lm_head", lambda s: without(s, "lm_head.weight")),
    "shape": ("1.0", f"wrong shape: {NORM}", lambda s: {**s, NORM: torch.ones(15)}),
    "nan": ("1.0", "NaN", lambda s: {**s, NORM: torch.full((16,), torch.nan)}),
    "more layers": (
        "1.0",
        "does not belong",
        lambda s: {**s, "decoder.block.2.layer.0.layer_norm.weight": torch.ones(16)},
    ),
    "gated weights, plain config": (
        "1.0",
        "DenseReluDense.wi.weight",
        lambda s: fid_state(tiny("1.1")) | {"lm_head.weight": fid_state(tiny("1.1"))[SHARED]},
    ),
    "copies differ": (
        "1.0",
        "decoder.embed_tokens.weight and shared.weight differ",
        lambda s: {**s, "decoder.embed_tokens.weight": torch.ones(40, 16)},
    ),
    "untied weights, tied config": (
        "1.0",
        "lm_head.weight and shared.weight differ",
        lambda s: {**s, "lm_head.weight": torch.ones(40, 16)},
    ),
    "integers": ("1.0", "not a plain tensor", lambda s: {**s, NORM: torch.ones(16).int()}),
    "sparse": ("1.0", "not a plain", lambda s: {**s, NORM: torch.ones(16).to_sparse()}),
    "meta": ("1.0", "not a plain", lambda s: {**s, NORM: torch.ones(16, device="meta")}),
    "no tensor": ("1.0", "not a tensor", lambda s: {**s, NORM: [1.0]}),
    "list": ("1.0", "no state dict", lambda s: list(s.values())),
    "no embedding": ("1.1", "missing: shared.weight", only_blocks),
    "retriever only": ("1.0", "missing", lambda s: {"retriever.x": torch.ones(1)}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_weights_are_refused_and_nothing_is_written(tmp_path: Path, fault: str) -> None:
    version, text, change = FAULTS[fault]
    source = config_folder(tmp_path / "fid", version)
    torch.save(change(fid_state(tiny(version))), source / "pytorch_model.bin")
    with pytest.raises(InputError, match=text) as caught:
        convert_checkpoint(source, tmp_path / "t5")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["fid"]


class Bait:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["state", "opt", "options"])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, place: str) -> None:
    caught_by = tmp_path / "ran"
    content = atlas_file(dict(tiny("1.1").state_dict()))
    if place == "state":
        content["model"]["reader.x"] = Bait(caught_by)  # type: ignore[index]
    elif place == "opt":
        content["opt"] = Bait(caught_by)
    else:
        content["opt"].x = Bait(caught_by)  # type: ignore[attr-defined]
    source = config_folder(tmp_path / "atlas", "1.1")
    torch.save(content, source / "model.pth.tar")
    with pytest.raises(InputError, match=r"more than weights.*mkdir") as caught:
        convert_checkpoint(source, tmp_path / "t5")
    assert "\n" not in str(caught.value)
    assert not caught_by.exists()
    torch.load(source / "model.pth.tar", weights_only=False)
    assert caught_by.exists()  # so it would have run


def test_other_classes_are_refused(tmp_path: Path) -> None:
    source = config_folder(tmp_path / "atlas", "1.1")
    torch.save({"model": {}, "opt": argparse.Namespace(path=Path("x"))}, source / "model.pth.tar")
    with pytest.raises(InputError, match="found pathlib"):
        convert_checkpoint(source, tmp_path / "t5")


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    source = fid_folder(tmp_path / "fid", "1.0")
    whole = (source / "pytorch_model.bin").read_bytes()
    end = whole.rindex(b"PK\x05\x06")
    for content, text in (
        (b"", "not a PyTorch checkpoint"),
        (b"junk" * 99, "not a PyTorch checkpoint"),
        (whole[: len(whole) // 2], "not a PyTorch checkpoint"),
        (whole[end:], "cannot be read"),
    ):
        (source / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(InputError, match=text):
            convert_checkpoint(source, tmp_path / "t5")
    (source / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read"):
        convert_checkpoint(source, tmp_path / "t5")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (None, "no configuration"),
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"model_type": "bert"}', "expected model_type t5, found bert"),
        ('{"model_type": "t5", "d_model": "wide"}', "cannot be used"),
        ('{"model_type": "t5", "feed_forward_proj": "a-b-c"}', "cannot be used"),
        ('{"model_type": "t5", "d_model": -4}', "describes no T5"),
    ],
)
def test_bad_configurations_are_refused(tmp_path: Path, config: str | None, text: str) -> None:
    source = fid_folder(tmp_path / "fid", "1.0")
    (source / "config.json").unlink()
    if config is not None:
        (source / "config.json").write_text(config)
    with pytest.raises(InputError, match=text) as caught:
        convert_checkpoint(source, tmp_path / "t5")
    assert "\n" not in str(caught.value)


def test_nothing_that_exists_is_replaced(tmp_path: Path) -> None:
    source = fid_folder(tmp_path / "fid", "1.0")
    with pytest.raises(UsageError, match="the output exists"):
        convert_checkpoint(source, source)
    for end in ("tmp", "old"):
        beside = tmp_path / f"t5.{end}"
        source = source.rename(beside)
        with pytest.raises(UsageError, match="where the output is prepared"):
            convert_checkpoint(source / "pytorch_model.bin", tmp_path / "t5", base=source)
        assert (beside / "pytorch_model.bin").is_file()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(atlas_file(tiny("1.1").state_dict()), tmp_path / "model.pth.tar")
    base = config_folder(tmp_path / "base", "1.1")
    line = [str(tmp_path / "model.pth.tar"), str(tmp_path / "t5")]
    assert main(line) == 3
    assert capsys.readouterr().err.startswith("error[input] no configuration")
    assert main([*line, "--base", str(base)]) == 0
    out = capsys.readouterr().out
    assert "own output layer" in out
    assert "left out: 2 tensors of the retriever, 'step', 'optimizer', 'opt'" in out
    assert main([*line, "--base", str(base)]) == 2
    assert main([str(tmp_path / "nothing"), str(tmp_path / "x")]) == 3
    assert main([line[0], str(tmp_path / "x"), "--base", str(tmp_path / "nothing")]) == 3
    assert main([str(fid_folder(tmp_path / "fid", "1.0")), str(tmp_path / "y")]) == 0
    assert "position bias" in capsys.readouterr().out
