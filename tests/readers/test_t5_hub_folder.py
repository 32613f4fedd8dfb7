"""T5 as it lies on the Hub: weights pickled, the tokenizer a SentencePiece model alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from btr.errors import InputError, UsageError
from btr.readers import t5_checkpoint
from btr.readers.convert_fid import main
from btr.readers.t5 import T5Reader
from tiny_readers import PASSAGES, TEXTS, WORDS
from tiny_t5 import t5_tokenizer, tiny_t5

SENTINELS = 100


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_pickled_weights_are_named_with_the_command_that_converts_them(tmp_path, capsys):
    source = tmp_path / "t5"
    tiny_t5(t5_tokenizer()).save_pretrained(source)
    t5_tokenizer().save_pretrained(source)
    whole = T5Reader.from_pretrained(source).read("When?", PASSAGES)
    (source / "model.safetensors").unlink()
    with pytest.raises(InputError) as error:
        T5Reader.from_pretrained(source)
    assert "a pytorch_model.bin is converted by python -m btr" in one_line(error)
    torch.save(tiny_t5(t5_tokenizer()).state_dict(), source / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        T5Reader.from_pretrained(source)
    line = f"python -m btr.readers.convert_fid {source} OUTPUT"
    assert line in one_line(error)
    assert main([str(source), str(tmp_path / "converted")]) == 0
    assert "wrote" in capsys.readouterr().out
    converted = T5Reader.from_pretrained(tmp_path / "converted").read("When?", PASSAGES)
    assert [a.text for a in converted.answers] == [a.text for a in whole.answers]


def test_without_its_package_a_sentencepiece_model_says_what_to_install(tmp_path, monkeypatch):
    tiny_t5(t5_tokenizer()).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not looked at")
    for name in ("is_sentencepiece_available", "is_protobuf_available"):
        with monkeypatch.context() as patch:
            patch.setattr(t5_checkpoint, name, lambda: False)
            with pytest.raises(UsageError) as error:
                T5Reader.from_pretrained(tmp_path)
        assert "pip install 'btr-reader[sentencepiece]'" in one_line(error)
        assert str(tmp_path / "spiece.model") in one_line(error)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder like google/t5-v1_1-base: config.json, pytorch_model.bin, spiece.model."""
    package = pytest.importorskip("sentencepiece", reason="the extra sentencepiece is missing")
    folder, model = tmp_path_factory.mktemp("hub") / "t5", io.BytesIO()
    folder.mkdir()
    lines = [f"{title} {text}" for title, text in TEXTS] * 3 + ["question: title: context:"]
    package.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, " ".join(WORDS)]), model_writer=model, vocab_size=120,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    settings = {"extra_ids": SENTINELS, "additional_special_tokens": sentinels}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    pieces = package.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=pieces + SENTINELS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    network = T5ForConditionalGeneration(config)
    config.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_a_folder_of_the_hub_is_converted_and_read(tmp_path, hub, capsys):
    import sentencepiece

    assert main([str(hub), str(tmp_path / "t5")]) == 0
    assert not (tmp_path / "t5" / "tokenizer.json").exists()
    reader = T5Reader.from_pretrained(tmp_path / "t5")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(hub / "spiece.model"))
    for passage in PASSAGES:
        assert reader.text.encode(passage.text)[0] == pieces.encode(passage.text)
    # T5 counts its sentinels down from the end of the vocabulary.
    assert reader.text.literal("<extra_id_0>") == [pieces.get_piece_size() + SENTINELS - 1]
    assert reader.read("When was it built?", PASSAGES).answers


def test_a_damaged_sentencepiece_model_is_said_to_be_unreadable(tmp_path, hub):
    tiny_t5(t5_tokenizer()).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError) as error:
        T5Reader.from_pretrained(tmp_path)
    assert str(tmp_path) in one_line(error)
