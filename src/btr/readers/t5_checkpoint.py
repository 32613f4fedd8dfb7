"""Fusion-in-Decoder checkpoints: any Hugging Face T5, with or without a ``btr`` section.

Frozen word embeddings that a packaged model carries are not saved again: the section names it, and
loading takes them from there.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from btr.binarize import WordResidual
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.files import replaced_folder
from btr.readers.base import MODES, Mode
from btr.readers.checkpoint import (
    WEIGHTS,
    check_tensors,
    packaged_embeddings,
    parse_section,
    quiet_transformers,
    read_config,
)
from btr.readers.digests import check_digests, write_digests
from btr.readers.id_rows import RULES
from btr.readers.t5_network import SplitT5
from btr.store.format import SCALE_BYTES

_SHARED = {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
           "lm_head.weight"}  # fmt: skip

_WORDS = "binarizer.words."
"""Before the names of the tensors that say what words make expect."""


@dataclass(frozen=True)
class T5ReaderConfig:
    """The ``btr`` section of a Fusion-in-Decoder checkpoint.

    Attributes:
        mode: Which mode the weights were trained for: plain, decomposed or btr.
        split_layer: Encoder layers below the cut; 0 for plain.
        query_budget: Most tokens of a question in its template (paper: 40).
        passage_budget: Most tokens of a passage in its template (paper: 320 with the question).
        answer_budget: Most tokens of an answer (paper: 32).
        positions: Where a passage begins: "budget" puts it at the query budget whatever the
            question's length, so that stored states fit any question; "concatenated" right after
            the question, as FiD and Atlas train. Only a plain reader can have the latter.
        query_template: Of a question, with ``{question}``.
        passage_template: Of a passage, with ``{title}`` and ``{text}``.
        answer_prompt: What every answer begins with and is not part of it; Atlas: <extra_id_0>.
        scale: How a 1-bit token's scale is stored: "rms16" as float16, "rms8" on a log scale.
        rule: What 1-bit states are: "calibrated" (the paper's), or "words", bits of what a token's
            word leaves unsaid (:class:`btr.binarize.WordResidual`).
        calibration: Slope and intercept that turn an answer's log-probability into the log-odds of
            its being right (``btr.evaluate.calibration``), or None.
        word_embeddings: Packaged model whose word embeddings these are, or "" if saved here.
        family: Always "t5" here.
    """

    mode: Mode = "plain"
    split_layer: int = 0
    query_budget: int = 40
    passage_budget: int = 280
    answer_budget: int = 32
    positions: str = "budget"
    query_template: str = "question: {question}"
    passage_template: str = "title: {title} context: {text}"
    answer_prompt: str = ""
    scale: str = "rms16"
    rule: str = "calibrated"
    calibration: tuple[float, float] | None = None
    word_embeddings: str = ""
    family: str = "t5"


def save_checkpoint(
    folder: Path,
    network: SplitT5,
    tokenizer: PreTrainedTokenizerBase,
    config: T5ReaderConfig,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a checkpoint beside ``folder`` and rename it into place; the network is not changed."""
    model = _cast(copy.deepcopy(network.model), dtype)
    model.config.btr = asdict(config)
    # transformers 5 calls every T5 tied, whatever it is.
    model.config.tie_word_embeddings = model.lm_head.weight is model.shared.weight
    tensors = model.state_dict()
    if config.word_embeddings:
        shared = model.shared.weight.data_ptr()
        tensors = {n: t for n, t in tensors.items() if t.data_ptr() != shared}
    if network.words is not None:
        tensors |= {f"{_WORDS}{n}": t.to(dtype) for n, t in network.words.state_dict().items()}
    with replaced_folder(folder) as beside, quiet_transformers():
        model.save_pretrained(beside, state_dict=tensors)
        tokenizer.save_pretrained(beside)
        write_digests(beside)


def load_network(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[SplitT5, PreTrainedTokenizerBase, T5ReaderConfig]:
    """Read a checkpoint folder made by :func:`save_checkpoint` or by Hugging Face.

    A folder without a ``btr`` section is a plain reader of plain concatenations.

    Returns:
        The network in eval mode and ``dtype``, its tokenizer and its configuration.

    Raises:
        InputError: No such checkpoint.
        IncompatibleError: Not a T5, or a newer section.
        UsageError: Its tokenizer needs a package that is not installed.
        CorruptError: Tensors are missing, left over, of the wrong shape or not finite.
    """
    check_digests(folder)
    described = read_config(folder)
    where = str(folder / "config.json")
    if described.get("model_type") != "t5":
        raise IncompatibleError("not a T5 checkpoint", where=where, expected="model_type t5",
                                found=str(described.get("model_type")))  # fmt: skip
    section = described.get("btr")
    base = section.get("word_embeddings") if isinstance(section, dict) else ""
    model, others = _load_model(folder, dtype, base if isinstance(base, str) else "")
    config = read_section(section, model.config, where)
    network = SplitT5(
        model, config.split_layer, binarized=config.mode == "btr",
        words=_load_words(config, model.config.d_model, others, dtype, str(folder)),
    )  # fmt: skip
    network.requires_grad_(False)
    return network.eval(), _load_tokenizer(folder), config


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a checkpoint."""
    # As T5 lies on the Hub. Without the packages transformers takes the file for another kind.
    pieces = folder / "spiece.model"
    alone = pieces.is_file() and not (folder / "tokenizer.json").is_file()
    if alone and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UsageError("the tokenizer is a SentencePiece model alone", where=str(pieces),
                         todo="pip install 'btr-reader[sentencepiece]'")  # fmt: skip
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, use_fast=True, local_files_only=True
            )
        if tokenizer.is_fast:
            return tokenizer
        found = "a slow one"
    except (OSError, ValueError, ImportError) as error:
        found = str(error).strip().split("\n")[0][:200]
    raise InputError("the checkpoint has no fast tokenizer", where=str(folder),
                     expected="tokenizer.json", found=found,
                     todo="save it with tokenizer.save_pretrained")  # fmt: skip


def _check_names(folder: Path, wanted: Collection[str]) -> None:
    """Refuse a file without embeddings, or without the head of a T5 that has its own.

    ``from_pretrained`` makes either of them from the other, without a word.
    """
    index = folder / "model.safetensors.index.json"
    try:
        if index.exists():
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        else:
            with safe_open(folder / WEIGHTS, "pt") as file:
                names = set(file.keys())
    except FileNotFoundError as error:
        pickled = (folder / "pytorch_model.bin").is_file()
        raise InputError(
            "the checkpoint has no weights in safetensors", where=str(folder),
            expected="model.safetensors", found="pytorch_model.bin" if pickled else "",
            todo=f"convert it: python -m btr.readers.convert_fid {folder} OUTPUT" if pickled
            else "fetch its weights; a pytorch_model.bin is converted by "
            "python -m btr.readers.convert_fid FOLDER OUTPUT",
        ) from error  # fmt: skip
    except Exception as error:
        raise CorruptError("checkpoint cannot be read", where=str(folder),
                           found=str(error).split("\n")[0][:200],
                           todo="fetch it again") from error  # fmt: skip
    for name in wanted:
        if name not in names:
            raise CorruptError(f"tensor is missing: {name}", where=str(folder),
                               todo="fetch the checkpoint again")  # fmt: skip


def _load_model(
    folder: Path, dtype: torch.dtype, base: str
) -> tuple[T5ForConditionalGeneration, dict[str, Tensor]]:
    """The model with every tensor accounted for, and those that say what words make expect.

    ``base`` has its word embeddings, if not "".
    """
    tied = read_config(folder).get("tie_word_embeddings", True)
    shared, head = ((), ()) if base else (("shared.weight",), ("lm_head.weight",))
    _check_names(folder, shared if tied else (*shared, *head))
    try:
        with quiet_transformers():
            loaded: Any = T5ForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:
        raise CorruptError("checkpoint cannot be read", where=str(folder),
                           found=str(error).split("\n")[0][:200],
                           todo="fetch it again") from error  # fmt: skip
    model: T5ForConditionalGeneration = loaded[0]
    found: dict[str, Any] = loaded[1]
    if base:
        embeddings = packaged_embeddings(base)
        check_tensors({"shared.weight": embeddings}, {"shared.weight": model.shared.weight},
                      str(folder))  # fmt: skip
        with torch.no_grad():
            model.shared.weight.copy_(embeddings)
        found["missing_keys"] = set(found["missing_keys"]) - _SHARED
    own = [name for name in found["unexpected_keys"] if name.startswith(_WORDS)]
    for fault, names in (
        ("tensor is missing", found["missing_keys"]),
        ("tensor does not belong", set(found["unexpected_keys"]) - set(own)),
        ("tensor has the wrong shape", [key[0] for key in found["mismatched_keys"]]),
    ):
        if names:
            raise CorruptError(f"{fault}: {sorted(names)[0]}", where=str(folder),
                               todo="fetch the checkpoint again")  # fmt: skip
    # Some modules ask to stay in float32 when the rest is cast; here all compute in one dtype.
    model = _cast(model, dtype)
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CorruptError(f"tensor holds NaN or infinity: {name}", where=str(folder),
                               todo="fetch the checkpoint again")  # fmt: skip
    if not own:
        return model, {}
    with safe_open(folder / WEIGHTS, "pt") as file:
        return model, {name.removeprefix(_WORDS): file.get_tensor(name) for name in own}


def _load_words(
    config: T5ReaderConfig,
    width: int,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    where: str,
) -> WordResidual | None:
    """What words make a reader expect; None for one whose bits are of the states themselves."""
    if config.mode != "btr" or config.rule != "words":
        check_tensors(tensors, {}, where)
        return None
    words = WordResidual(width)
    check_tensors(tensors, words.state_dict(), where)
    words.load_state_dict(tensors)
    return words.to(dtype)


def _cast(model: T5ForConditionalGeneration, dtype: torch.dtype) -> T5ForConditionalGeneration:
    """All weights in one dtype, in place."""
    nn.Module.to(model, dtype)
    return model


def read_section(section: object, shape: T5Config, where: str) -> T5ReaderConfig:
    """The ``btr`` section of a configuration; without one, that of a plain reader.

    Raises:
        IncompatibleError: It has a setting that is not known here.
        CorruptError: A setting is missing or impossible.
    """
    if section is None:
        return T5ReaderConfig(positions="concatenated")
    config = parse_section(
        section, T5ReaderConfig, where,
        choices={
            "mode": MODES, "family": ("t5",), "scale": tuple(SCALE_BYTES), "rule": RULES,
            "positions": ("budget", "concatenated"),
        },
        ranges={
            "split_layer": (0, int(shape.num_layers)),
            "query_budget": (2, 4096),
            "passage_budget": (2, 65536),
            "answer_budget": (1, 4096),
        },
        texts=("query_template", "passage_template", "answer_prompt", "word_embeddings"),
    )  # fmt: skip
    if config.calibration is not None:
        pair = config.calibration
        if not (isinstance(pair, list) and len(pair) == 2 and all(map(_is_number, pair))):
            raise CorruptError("impossible calibration in the btr section", where=where,
                               expected="two numbers", found=str(pair)[:80])  # fmt: skip
        config = replace(config, calibration=(float(pair[0]), float(pair[1])))
    if config.mode != "plain" and config.positions != "budget":
        raise CorruptError("a split reader's passages begin at the query budget", where=where,
                           expected='positions "budget"', found=config.positions)  # fmt: skip
    return config


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
