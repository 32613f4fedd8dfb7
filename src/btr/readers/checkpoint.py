"""What all families' checkpoints share: a ``btr`` section that is checked, weights that fit.

A checkpoint is a Hugging Face folder with a ``btr`` section in its ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from btr.errors import CorruptError, IncompatibleError, InputError
from btr.files import copy_file, replaced_folder
from btr.models import resolve
from btr.readers.digests import DIGESTS, check_digests, write_digests

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Section = TypeVar("Section", bound=DataclassInstance)

WEIGHTS = "model.safetensors"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and remarks: what is wrong with a checkpoint is checked here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's ``config.json``.

    Raises:
        InputError: There is none.
        CorruptError: It is no JSON object.
    """
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError("not a checkpoint folder", where=str(folder),
                         expected="config.json and model.safetensors",
                         found="no config.json") from error  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError("checkpoint cannot be read", where=str(path), found=str(error)[:200],
                           todo="fetch it again") from error  # fmt: skip
    if not isinstance(described, dict):
        raise CorruptError("checkpoint cannot be read", where=str(path), expected="a JSON object",
                           todo="fetch it again")  # fmt: skip
    return described


def read_reader(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration of a reader of btr, its files checked, and the ``btr`` section in it.

    Raises:
        InputError: There is no checkpoint, or it is not btr's.
        CorruptError: It is damaged.
    """
    check_digests(folder)
    described = read_config(folder)
    section = described.get("btr")
    if not isinstance(section, dict):
        raise InputError("no reader of btr", where=str(folder),
                         expected="a checkpoint with a btr section")  # fmt: skip
    return described, section


def rewrite_checkpoint(
    source: Path,
    target: Path,
    described: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint like another one, with another configuration.

    Args:
        source: The other one.
        target: Where to; ``source`` itself is replaced as a whole.
        described: The configuration.
        tensors: Other weights as well; None keeps them.

    Raises:
        ResourceError: No space.
    """
    own = {"config.json", DIGESTS} | ({WEIGHTS} if tensors is not None else set())
    with replaced_folder(target) as beside:
        for file in sorted(source.iterdir()):
            if file.is_file() and file.name not in own:
                copy_file(file, beside / file.name)
        if tensors is not None:
            save_file(dict(tensors), beside / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (beside / "config.json").write_text(text, encoding="utf-8")
        write_digests(beside)


def parse_section(
    section: object,
    kind: type[Section],
    where: str,
    *,
    choices: Mapping[str, Collection[str]],
    ranges: Mapping[str, tuple[int, int]],
    texts: Collection[str],
) -> Section:
    """The ``btr`` section of a configuration as its family's dataclass.

    Args:
        section: What stands in the file.
        kind: The dataclass.
        where: The file, for messages.
        choices: Allowed values of text settings.
        ranges: Least and greatest value of whole-number settings.
        texts: Settings that are any text.

    Raises:
        IncompatibleError: It has a setting or a choice that is not known here.
        CorruptError: A setting is missing or impossible.
    """
    known = [f.name for f in fields(kind)]
    if not isinstance(section, dict):
        raise CorruptError("the btr section is no object", where=where, found=str(section)[:80])
    for name in section:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise IncompatibleError(
                f"unknown setting {name!r} in the btr section", where=where,
                expected=", ".join(known), found=name[:80],
                todo=(f"did you mean {near[0]}? or " if near else "") + "install a newer btr",
            )  # fmt: skip
    try:
        config = kind(**section)
    except TypeError:
        raise CorruptError("the btr section is not whole", where=where, expected=", ".join(known),
                           found=", ".join(section)) from None  # fmt: skip
    for name, values in choices.items():
        if (found := getattr(config, name)) not in values:
            raise IncompatibleError(f"unknown {name} in the btr section", where=where,
                                    expected=" or ".join(values), found=str(found)[:80],
                                    todo="install a newer btr")  # fmt: skip
    for name, (low, high) in ranges.items():
        if type(found := getattr(config, name)) is not int or not low <= found <= high:
            raise CorruptError(f"impossible {name} in the btr section", where=where,
                               expected=f"{low} to {high}", found=str(found)[:80])  # fmt: skip
    for name in texts:
        if type(getattr(config, name)) is not str:
            raise CorruptError(f"{name} in the btr section is no text", where=where)
    return config


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights as they are in its file.

    Raises:
        InputError: There is no such file.
        CorruptError: It cannot be read.
    """
    try:
        return load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError("not a checkpoint folder", where=str(folder),
                         expected="config.json and model.safetensors",
                         found="no model.safetensors") from error  # fmt: skip
    except Exception as error:
        raise CorruptError("checkpoint cannot be read", where=str(folder), found=str(error),
                           todo="fetch it again") from error  # fmt: skip


def packaged_embeddings(name: str) -> Tensor:
    """Word embeddings of a packaged BERT, ``[V, d]`` float32.

    Raises:
        InputError: No such model, or its package is not installed.
        IncompatibleError: The package is another one than btr was made with.
    """
    tensors = load_file(Path(resolve(name)) / WEIGHTS)
    return tensors["embeddings.word_embeddings.weight"]


def check_tensors(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that do not fit: safetensors itself checks neither names nor values.

    Raises:
        CorruptError: Names the first tensor that is missing, left over, misshapen or not finite.
    """
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            fault = "tensor is missing" if name not in found else "tensor does not belong"
            raise CorruptError(f"{fault}: {name}", where=where, todo="fetch the checkpoint again")
        if found[name].shape != wanted[name].shape:
            raise CorruptError(f"tensor has the wrong shape: {name}", where=where,
                               expected=str(tuple(wanted[name].shape)),
                               found=str(tuple(found[name].shape)))  # fmt: skip
        if not torch.isfinite(found[name]).all():
            raise CorruptError(f"tensor holds NaN or infinity: {name}", where=where,
                               todo="fetch the checkpoint again")  # fmt: skip


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values in bfloat16, in the order of the names.

    Rounded, so that weights loaded in another dtype are still the same weights.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name}:{tuple(value.shape)};".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over everything that a fast tokenizer does."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every token id's token."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
