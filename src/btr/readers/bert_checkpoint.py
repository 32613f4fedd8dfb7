"""Extractive checkpoints: a Hugging Face folder with a ``btr`` section in ``config.json``.

Frozen word embeddings that a base model already carries are not saved again: the section names the
base, and loading takes them from there.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedTokenizerBase

from btr.binarize import PostNormBinarizer, WordResidual
from btr.errors import CorruptError, IncompatibleError
from btr.files import replaced_folder
from btr.readers.base import MODES, Mode
from btr.readers.bert_network import SplitBert
from btr.readers.bert_text import load_tokenizer
from btr.readers.checkpoint import (
    WEIGHTS,
    check_tensors,
    load_tensors,
    packaged_embeddings,
    parse_section,
    read_config,
)
from btr.readers.digests import check_digests, write_digests
from btr.readers.id_rows import RULES

WORD_EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class BertReaderConfig:
    """The ``btr`` section of an extractive checkpoint.

    Attributes:
        mode: Which mode the weights were trained for: plain, decomposed or btr.
        split_layer: Layers below the cut; 0 for plain.
        query_budget: Positions kept for ``[CLS] question [SEP]``.
        passage_budget: Most tokens of a passage.
        labels: Classes that the reader tells a question's passages into, in the order of its head.
        rule: What 1-bit states are: "calibrated" (the paper's), or "words", bits of what a token's
            word leaves unsaid (:class:`btr.binarize.WordResidual`).
        word_embeddings: Model whose word embeddings these are, or "" if saved in the checkpoint.
        abstention: The score of "not answered" is this times ln(n) for n passages
            (``btr.evaluate.calibration``).
        family: Always "bert" here.
    """

    mode: Mode
    split_layer: int
    query_budget: int = 48
    passage_budget: int = 384
    labels: tuple[str, ...] = ()
    rule: str = "calibrated"
    word_embeddings: str = ""
    abstention: float = 0.0
    family: str = "bert"

    @classmethod
    def fitting(cls, shape: BertConfig) -> BertReaderConfig:
        """A plain reader's, the passage's budget cut to the positions that the network has."""
        room = int(shape.max_position_embeddings) - cls.query_budget
        return cls("plain", 0, passage_budget=min(cls.passage_budget, room))


def save_checkpoint(
    folder: Path,
    network: SplitBert,
    tokenizer: PreTrainedTokenizerBase,
    config: BertReaderConfig,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint beside ``folder`` and rename it into place."""
    tensors: dict[str, Tensor] = dict(network.model.state_dict())
    if config.word_embeddings:
        del tensors[WORD_EMBEDDINGS]
    if network.binarizer is not None:
        tensors |= {f"binarizer.{n}": t for n, t in network.binarizer.state_dict().items()}
    if network.classifier is not None:
        tensors |= {f"classifier.{n}": t for n, t in network.classifier.state_dict().items()}
    described = json.loads(network.model.config.to_json_string(use_diff=False))
    described = {k: v for k, v in described.items() if k in _KEPT_CONFIG}
    described["architectures"] = ["BertForQuestionAnswering"]
    described["dtype"] = str(dtype).removeprefix("torch.")
    described["btr"] = asdict(config)
    with replaced_folder(folder) as beside:
        save_file(
            {n: t.detach().to(dtype).contiguous() for n, t in tensors.items()},
            beside / WEIGHTS,
            metadata={"format": "pt"},
        )
        (beside / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
        tokenizer.save_pretrained(beside)
        write_digests(beside)


_KEPT_CONFIG = {
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size",
    "layer_norm_eps", "pad_token_id",
}  # fmt: skip


def load_network(
    folder: Path, *, dtype: torch.dtype = torch.float32
) -> tuple[SplitBert, PreTrainedTokenizerBase, BertReaderConfig]:
    """Read a checkpoint folder made by :func:`save_checkpoint` or by Hugging Face.

    A folder without a ``btr`` section is a plain reader.

    Returns:
        The network in eval mode and ``dtype``, its tokenizer and its configuration.

    Raises:
        InputError: No such checkpoint, or not a BERT.
        CorruptError: Tensors are missing, left over, of the wrong shape or not finite.
    """
    check_digests(folder)
    described = read_config(folder)
    tensors = load_tensors(folder)
    if described.get("model_type") != "bert":
        raise IncompatibleError("not a BERT checkpoint", where=str(folder / "config.json"),
                                expected="model_type bert",
                                found=str(described.get("model_type")))  # fmt: skip
    section = described.pop("btr", None)
    shape = BertConfig(**described)
    config = read_section(section, shape, str(folder / "config.json"))
    model = BertForQuestionAnswering(shape)
    binarizer: PostNormBinarizer | WordResidual | None = None
    if config.mode == "btr":
        kind = WordResidual if config.rule == "words" else PostNormBinarizer
        binarizer = kind(model.config.hidden_size)
    network = SplitBert(
        model, config.split_layer, config.query_budget, binarizer=binarizer,
        labels=len(config.labels),
    )  # fmt: skip
    own = ("binarizer.", "classifier.")
    tensors = {n if n.startswith(own) else f"model.{n}": t for n, t in tensors.items()}
    if config.word_embeddings:
        tensors[f"model.{WORD_EMBEDDINGS}"] = packaged_embeddings(config.word_embeddings)
    check_tensors(tensors, network.state_dict(), str(folder / WEIGHTS))
    network.load_state_dict(tensors)
    network.requires_grad_(False)
    tokenizer = load_tokenizer(folder)
    return network.to(dtype).eval(), tokenizer, config


def load_config(folder: Path) -> BertReaderConfig:
    """The configuration of a checkpoint folder alone; without a ``btr`` section, a plain one's."""
    described = read_config(folder)
    section = described.pop("btr", None)
    return read_section(section, BertConfig(**described), str(folder / "config.json"))


def read_section(section: object, shape: BertConfig, where: str) -> BertReaderConfig:
    """The ``btr`` section of a configuration; without one, that of a plain reader.

    Raises:
        IncompatibleError: It has a setting that is not known here.
        CorruptError: A setting is missing or impossible.
    """
    if section is None:
        return BertReaderConfig.fitting(shape)
    positions = int(shape.max_position_embeddings)
    config = parse_section(
        section, BertReaderConfig, where,
        choices={"mode": MODES, "family": ("bert",), "rule": RULES},
        ranges={
            "split_layer": (0, int(shape.num_hidden_layers)),
            "query_budget": (3, positions - 2),
            "passage_budget": (2, positions),
        },
        texts=("word_embeddings",),
    )  # fmt: skip
    if config.query_budget + config.passage_budget > positions:
        raise CorruptError("the budgets in the btr section exceed the model's positions",
                           where=where, expected=f"at most {positions} in all",
                           found=f"{config.query_budget} and {config.passage_budget}")  # fmt: skip
    labels = config.labels
    if not isinstance(labels, list | tuple) or len({*map(str, labels)}) != len(labels):
        raise CorruptError("impossible labels in the btr section", where=where,
                           expected="different texts", found=str(labels)[:80])  # fmt: skip
    weight = config.abstention
    if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise CorruptError("impossible abstention in the btr section", where=where,
                           expected="at least 0", found=str(weight)[:80])  # fmt: skip
    return replace(config, labels=tuple(map(str, labels)), abstention=float(weight))
