"""Fusion-in-Decoder checkpoints of FiD and Atlas as ordinary Hugging Face T5 folders.

Fusion-in-Decoder changes how T5's encoder is called and not what it computes, so the weights are a
T5's under other names. The names come from github.com/facebookresearch/FiD (src/model.py: the
encoder is wrapped, and each of its blocks once more) and github.com/facebookresearch/atlas
(src/model_io.py: reader and retriever in one file, beside options and optimizers).

    python -m btr.readers.convert_fid SOURCE OUTPUT [--base FOLDER]

One thing cannot be carried over. The transformers of FiD's time (3.0.2) gave the decoder's
cross-attention a position bias, which T5 never had and later versions dropped (transformers pull
request 8518). It told the keys apart only where they stood before the query: the first tokens of
the first passage, as many as the answer had so far. Without it the first answer token is computed
as before, later ones nearly so. Atlas has no such bias.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from btr.errors import CorruptError, InputError, ResourceError, UsageError, one_line_errors
from btr.files import copy_file, explaining, replaced_folder
from btr.readers.checkpoint import check_tensors
from btr.readers.digests import write_digests

SHARED, HEAD = "shared.weight", "lm_head.weight"
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")

# "module." behind these: training on several GPUs, whose wrapper may be saved too.
_RETRIEVER = re.compile(r"(?:module\.)?retriever\.")
_READER = re.compile(r"^(?:module\.)?(?:reader\.(?:module\.)?)?")
_ENCODER_WRAPPER = re.compile(r"^encoder\.encoder\.")
_BLOCK_WRAPPER = re.compile(r"^(encoder\.block\.[0-9]+)\.module\.")
_T5_NAME = re.compile(
    r"(?:shared|lm_head|(?:encoder|decoder)\.(?:embed_tokens|final_layer_norm"
    r"|block\.[0-9]+\.layer\.[0-2]\.(?:layer_norm"
    r"|SelfAttention\.(?:[qkvo]|relative_attention_bias)|EncDecAttention\.[qkvo]"
    r"|DenseReluDense\.(?:wi|wi_0|wi_1|wo))))\.weight"
)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pth.tar")
_TOKENIZER = ("spiece.model", "tokenizer.json")  # a tokenizer needs one of them
_TOKENIZER_FILES = (
    *_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_KEPT_CONFIG = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
    "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate",
    "layer_norm_epsilon", "initializer_factor", "feed_forward_proj", "is_encoder_decoder",
    "use_cache", "pad_token_id", "eos_token_id", "decoder_start_token_id",
)  # fmt: skip
_OUTPUT_CONFIG = ("tie_word_embeddings", "scale_decoder_outputs")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What :func:`convert_checkpoint` wrote and what it left out.

    Attributes:
        tensors: Tensors written.
        scaled: Whether decoder outputs are scaled before the output layer, which then is the input
            embedding (T5 v1.0); else the output layer has weights of its own (v1.1).
        retriever: Tensors of a retriever, left out.
        cross_bias: Whether the cross-attention's position bias was there and left out.
        parts: What else stood beside Atlas' weights, left out: optimizers, options ...
    """

    tensors: int
    scaled: bool
    retriever: int
    cross_bias: bool
    parts: tuple[str, ...]


def convert_names(names: Iterable[str], where: str = "") -> dict[str, str]:
    """From the names of a FiD or Atlas state dict to those of ``T5ForConditionalGeneration``.

    Ordinary T5 names stay as they are. Not in the result: the retriever's weights and
    :data:`CROSS_BIAS`.

    Args:
        names: Of the tensors.
        where: The file, for errors.

    Raises:
        InputError: A name has no place in a T5, or two have the same; names the first.
    """
    old_names: dict[str, str] = {}
    for name in names:
        if _RETRIEVER.match(name):
            continue
        new = _ENCODER_WRAPPER.sub("encoder.", _READER.sub("", name))
        new = _BLOCK_WRAPPER.sub(r"\1.", new)
        if new == CROSS_BIAS:
            continue
        if not _T5_NAME.fullmatch(new):
            raise InputError(f"tensor has no place in a T5: {name[:200]}", where=where,
                             expected="a reader of FiD or Atlas")  # fmt: skip
        if new in old_names:
            raise InputError(f"two tensors for one place: {old_names[new]} and {name}", where=where)
        old_names[new] = name
    return {old: new for new, old in old_names.items()}


def convert_state(
    state: Mapping[str, Tensor], *, scaled: bool, tied: bool, where: str = ""
) -> dict[str, Tensor]:
    """The tensors of a T5, each value once, from a FiD or Atlas state dict.

    The input embedding is saved up to four times: for both stacks, and as the output layer where
    that is tied. Copies are compared bit for bit.

    Args:
        state: Names to tensors of any shape in float32, float16 or bfloat16, on the CPU.
        scaled: Whether the configuration scales decoder outputs: the output layer is tied.
        tied: Whether a missing output layer means the input embedding, when outputs are not scaled.
        where: The file, for errors.

    Returns:
        T5 names to the same tensors; ``lm_head.weight`` is there if outputs are not scaled.

    Raises:
        InputError: As for :func:`convert_names`; a tensor is not plain; copies differ.
    """
    tensors = {new: state[old].detach() for old, new in convert_names(state, where).items()}
    for name, tensor in tensors.items():
        if (
            tensor.layout is not torch.strided
            or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16)
            or tensor.device.type != "cpu"
        ):
            raise InputError(f"not a plain tensor: {name}", where=where,
                             expected="float32, float16 or bfloat16",
                             found=f"{tensor.dtype}, {tensor.layout}")  # fmt: skip
    for copy in (*_COPIES, *([HEAD] if scaled else [])):
        value = tensors.pop(copy, None)
        if value is not None:  # a file that keeps only one of them may keep any
            _check_copy(copy, value, tensors.setdefault(SHARED, value), where)
    if not scaled and tied and HEAD not in tensors and SHARED in tensors:
        tensors[HEAD] = tensors[SHARED]
    return tensors


def _check_copy(name: str, copy: Tensor, shared: Tensor, where: str) -> None:
    """Refuse a copy of the input embedding that differs in shape, dtype or any value."""
    if copy.shape == shared.shape and copy.dtype == shared.dtype and torch.equal(copy, shared):
        return
    raise InputError(
        f"{name} and {SHARED} differ", where=where,
        expected="one embedding, as the configuration says",
        todo="give the configuration that the model was trained with",
    )  # fmt: skip


def convert_checkpoint(source: Path, output: Path, *, base: Path | None = None) -> Conversion:
    """Write a Hugging Face T5 folder from a FiD or Atlas checkpoint.

    Dtypes stay as they are. Pickled files are read with PyTorch's restricted unpickler, which
    builds tensors and plain containers, and here Atlas' options; they run no code.

    Args:
        source: A folder with ``model.safetensors``, ``pytorch_model.bin`` or ``model.pth.tar``, and
            with ``config.json`` and a tokenizer if it has them; or one such file.
        output: A folder that does not exist; it appears when it is whole.
        base: A T5 folder for the configuration and the tokenizer that the source lacks; Atlas has
            neither.

    Raises:
        UsageError: The output exists, or writing it would remove a source.
        InputError: Something is not there, cannot be read, holds more than weights, or is no T5; a
            tensor is missing, left over, not of the shape that the configuration says, or not
            finite.
        ResourceError: No space.
    """
    output = output.absolute()
    if base is not None and not base.is_dir():
        raise InputError("no such folder", where=str(base), expected="a T5's folder")
    folders = [f for f in (source, base) if f is not None and f.is_dir()]
    _check_output(output, [source, *folders])
    weights = _weights_file(source)
    shape, tied = _read_config(folders)
    scaled = bool(shape.scale_decoder_outputs)
    state, parts = _read_state(weights)
    tensors = convert_state(state, scaled=scaled, tied=tied, where=str(weights))
    try:
        check_tensors(tensors, _wanted(shape, scaled), str(weights))
    except CorruptError as error:  # here the configuration may be another model's
        raise InputError(
            error.what, where=error.where, expected=error.expected, found=error.found,
            todo="give the configuration of this very model, or fetch the checkpoint again",
        ) from error  # fmt: skip
    config = {name: getattr(shape, name, None) for name in _KEPT_CONFIG}
    if config["decoder_start_token_id"] is None:
        config["decoder_start_token_id"] = shape.pad_token_id  # as T5 was trained
    # transformers 4 takes "not tied" for both facts, 5 has a name for the second. It ties what is
    # equal and keeps apart what differs, so that both tensors must be in the file.
    config |= dict.fromkeys(_OUTPUT_CONFIG, scaled)
    config |= {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "dtype": str(tensors[SHARED].dtype).removeprefix("torch."),
    }
    with explaining(output), replaced_folder(output) as beside:
        try:
            save_file(_apart(tensors), beside / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise ResourceError("the weights cannot be written", where=str(output),
                                found=str(error)) from error  # fmt: skip
        (beside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for file in _tokenizer_files(folders):
            copy_file(file.resolve(), beside / file.name)  # in the Hub's cache they are links
        write_digests(beside)
    return Conversion(
        tensors=len(tensors),
        scaled=scaled,
        retriever=sum(bool(_RETRIEVER.match(name)) for name in state),
        cross_bias=any(_READER.sub("", name) == CROSS_BIAS for name in state),
        parts=parts,
    )


def _check_output(output: Path, sources: list[Path]) -> None:
    """Refuse an output that is there, and one whose writing would remove what is read."""
    if output.exists() or output.is_symlink():
        raise UsageError("the output exists", where=str(output), todo="name a new folder")
    for end in (".tmp", ".old"):  # replaced_folder clears both away
        beside = output.with_name(output.name + end).resolve()
        if any(beside in (path.resolve(), *path.resolve().parents) for path in sources):
            raise UsageError("the source lies where the output is prepared", where=str(beside),
                             todo="name another output")  # fmt: skip


def _weights_file(source: Path) -> Path:
    """The file with the weights."""
    for path in (source, *(source / name for name in _WEIGHTS)):
        if path.is_file():
            return path
    raise InputError(
        "no weights of FiD or Atlas", where=str(source), expected=" or ".join(_WEIGHTS),
        found="a folder without" if source.is_dir() else "no such file or folder",
        todo="name the folder that holds them, like checkpoint/best_dev",
    )  # fmt: skip


def _read_config(folders: list[Path]) -> tuple[T5Config, bool]:
    """The configuration of the first folder that has one, and whether it ties the output layer."""
    path = next((f / "config.json" for f in folders if (f / "config.json").is_file()), None)
    if path is None:
        raise InputError(
            "no configuration", where=" or ".join(map(str, folders)), expected="config.json",
            todo="name the folder of the T5 that the model was trained from, with --base",
        )  # fmt: skip
    try:
        found: Any = json.loads(path.read_bytes())
        kind = found.get("model_type")
        known = {k: found[k] for k in (*_KEPT_CONFIG, *_OUTPUT_CONFIG) if k in found}
        shape = T5Config(**known)
    except Exception as error:  # each setting has its own way to be wrong
        raise InputError("the configuration cannot be used", where=str(path),
                         found=" ".join(str(error).split())[:200]) from error  # fmt: skip
    if kind != "t5":
        raise InputError("not the configuration of a T5", where=str(path),
                         expected="model_type t5", found=str(kind)[:80])  # fmt: skip
    return shape, found.get("tie_word_embeddings") is not False


def _wanted(shape: T5Config, scaled: bool) -> dict[str, Tensor]:
    """The tensors of a T5 of this shape, without values and without the embedding's copies."""
    try:
        with torch.device("meta"):
            wanted = T5ForConditionalGeneration(shape).state_dict()
    except (RuntimeError, ValueError) as error:
        raise InputError("the configuration describes no T5", where="config.json",
                         found=str(error).split("\n")[0][:200]) from error  # fmt: skip
    copies = (*_COPIES, *([HEAD] if scaled else []))
    return {name: tensor for name, tensor in wanted.items() if name not in copies}


def _read_state(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict in a file, and the names of what stands beside it."""
    try:
        found: object = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except (SafetensorError, OSError) as error:
        raise InputError("the checkpoint cannot be read", where=str(path), found=str(error)[:200],
                         todo="fetch it again") from error  # fmt: skip
    parts: tuple[str, ...] = ()
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):  # Atlas
        parts = tuple(str(k) for k, value in found.items() if k != "model" and value is not None)
        found = found["model"]
    if not isinstance(found, Mapping):
        raise InputError("no state dict in the file", where=str(path), found=type(found).__name__)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError("not a tensor in the state dict", where=str(path),
                             found=f"{str(name)[:200]}: {type(value).__name__}")  # fmt: skip
    return dict(found), parts


def _unpickle(path: Path) -> object:
    """What ``torch.save`` put into a file: tensors, which stay on the disk, and plain containers.

    Raises:
        InputError: It is no such file, is damaged, or holds anything else.
    """
    if not zipfile.is_zipfile(path):
        raise InputError(
            "not a PyTorch checkpoint, or cut off", where=str(path),
            expected="a file that torch.save wrote, in PyTorch 1.6 or newer",
            todo="fetch it again; an older file must be saved again",
        )  # fmt: skip
    try:
        # Atlas keeps its options in the file; a Namespace is attributes and nothing more.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(str(path), weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # the unpickler raises whatever a broken pickle makes it stumble on
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise InputError(
                "the checkpoint holds more than weights, and might run code", where=str(path),
                expected="tensors and plain containers", found=asked[1][:200],
                todo="do not load it elsewhere unless you trust its author",
            ) from error  # fmt: skip
        raise InputError("the checkpoint cannot be read", where=str(path),
                         found=(str(error).split("\n")[0] or type(error).__name__)[:200],
                         todo="fetch it again") from error  # fmt: skip


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and each in memory of its own, as safetensors wants them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        alone = memory.nbytes() == tensor.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        if not (alone and tensor.is_contiguous()):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        apart[name] = tensor
    return apart


def _tokenizer_files(folders: list[Path]) -> list[Path]:
    """The tokenizer's files, all from the first folder that has a tokenizer."""
    for folder in folders:
        if any((folder / name).is_file() for name in _TOKENIZER):
            return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return []


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one checkpoint.

    Args:
        arguments: What stands after the program's name; None for the process's own.

    Returns:
        The exit status, as ``btr.errors`` lists them.
    """
    parser = argparse.ArgumentParser(
        prog="python -m btr.readers.convert_fid",
        description="Write a Hugging Face T5 folder from a checkpoint of FiD or Atlas.",
    )
    parser.add_argument("source", type=Path, help="folder or file that holds the weights")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--base", type=Path, help="T5 folder for a missing config and tokenizer")
    options = parser.parse_args(arguments)
    done = convert_checkpoint(options.source, options.output, base=options.base)
    kind = "scaled outputs, tied (v1.0)" if done.scaled else "own output layer (v1.1)"
    print(f"wrote {options.output}: {done.tensors} tensors, {kind}")
    if done.retriever or done.parts:
        parts = "".join(f", {part!a}" for part in done.parts)
        print(f"left out: {done.retriever} tensors of the retriever{parts}")
    if done.cross_bias:
        print("left out: the cross-attention's position bias, which T5 does not have: answers may "
              "differ slightly from FiD's")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
