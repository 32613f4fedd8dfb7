"""Which files a run reads, in which order, and what they are called: decided before reading.

The order is that of the names, whatever the file system gives, so that a resumed run replays the
same passages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from btr.errors import InputError, UsageError

FORMATS = {
    ".txt": "txt", ".md": "md", ".html": "html", ".htm": "html", ".pdf": "pdf",
    ".jsonl": "jsonl", ".tsv": "tsv",
}  # fmt: skip
LINE_FORMATS = frozenset({"jsonl", "tsv"})
SUPPORTED = ".txt .md .html .htm .pdf .jsonl .tsv, each also with .gz"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: Where it is.
        name: What the user calls it: the path below what all sources have in common, with ``/``.
        format: ``txt``, ``md``, ``html``, ``pdf``, ``jsonl`` or ``tsv``.
        size: Bytes on disk.
    """

    path: Path
    name: str
    format: str
    size: int

    @property
    def stem(self) -> str:
        """The file's name without its extensions."""
        name = self.path.name
        if name.lower().endswith(".gz"):
            name = name[:-3]
        return name[: name.rindex(".")] or name


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """The files of a run.

    Attributes:
        files: In reading order.
        skipped: Files and folders inside folders that are not read, as (name, reason).
    """

    files: tuple[SourceFile, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def total_bytes(self) -> int:
        """Bytes on disk of all files, as progress counts them."""
        return sum(file.size for file in self.files)

    def digest(self, progress: Callable[[int, int], None] | None = None) -> str:
        """Hex digest of the names and contents of all files; 64 hex digits.

        Two runs over sources of equal digest read the same passages.

        Args:
            progress: Called with bytes read and bytes in total.

        Raises:
            InputError: A file cannot be read.
        """
        whole, done, total = blake2b(digest_size=32), 0, self.total_bytes
        for file in self.files:
            content = blake2b(digest_size=32)
            try:
                with file.path.open("rb") as stream:
                    while block := stream.read(1 << 20):
                        content.update(block)
                        done += len(block)
                        if progress:
                            progress(done, total)
            except OSError as error:
                raise _unreadable(file.name, error) from error
            whole.update(os.fsencode(file.name) + b"\0" + content.digest())
        return whole.hexdigest()


def plan_sources(sources: Sequence[Path]) -> SourcePlan:
    """Find the files of a run.

    Folders are walked in the order of names; hidden entries and files of other types are skipped
    and named. So are links: what they point to inside the folder has its own place there, and what
    lies outside was not asked for. A file given twice is read once.

    Args:
        sources: Files and folders, each of which may itself be a link.

    Raises:
        UsageError: No sources.
        InputError: A source does not exist, cannot be read, or is a file of another type.
    """
    if not sources:
        raise UsageError("no sources given", todo="name files or folders")
    found = [_look_up(Path(source)) for source in sources]
    roots = [path if is_folder else path.parent for path, is_folder in found]
    root = Path(os.path.commonpath(roots))
    files: dict[Path, SourceFile] = {}
    skipped: dict[str, str] = {}
    for path, is_folder in found:
        for item, reason in _walk(path, root) if is_folder else ((path, ""),):
            name = item.relative_to(root).as_posix()
            if reason:
                skipped[name] = reason
            elif item not in files:
                files[item] = SourceFile(item, name, format_of(item), _size(item, name))
    return SourcePlan(tuple(files.values()), tuple(sorted(skipped.items())))


def format_of(path: Path) -> str:
    """The format that a file's name says, "" for none of ours."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return FORMATS.get(suffixes[-1], "") if suffixes else ""


def _look_up(path: Path) -> tuple[Path, bool]:
    """A source as given by the user, with its links followed, and whether it is a folder."""
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(str(path), error) from error
    if stat.S_ISDIR(mode):
        return real, True
    if not stat.S_ISREG(mode):
        raise InputError("not a regular file", where=str(path), todo="name a file or a folder")
    if not format_of(path):
        raise InputError(
            "a source of a type that btr does not read",
            where=str(path),
            expected=f"one of {SUPPORTED}",
            found=path.suffix or "no extension",
            todo="convert it or leave it out",
        )
    # The name the user gave says the type and the title, even where it is a link.
    return path.parent.resolve() / path.name, False


def _walk(folder: Path, root: Path) -> Iterator[tuple[Path, str]]:
    """Files below a folder, each with "" or the reason why it is skipped."""
    # A stack and not recursion: folders can be nested deeper than Python's calls.
    stack = _entries(folder, root)
    while stack:
        entry = stack.pop()
        path = Path(entry.path)
        if entry.name.startswith("."):
            yield path, "hidden"
        elif entry.is_symlink():
            yield path, "a link"
        elif entry.is_dir(follow_symlinks=False):
            stack += _entries(path, root)
        elif not entry.is_file(follow_symlinks=False):
            yield path, "not a regular file"
        elif not format_of(path):
            yield path, f"type {path.suffix!r} is not read" if path.suffix else "no extension"
        else:
            yield path, ""


def _entries(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, the last name first."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: os.fsencode(entry.name), reverse=True)
    except OSError as error:
        raise _unreadable(folder.relative_to(root).as_posix(), error) from error


def _size(path: Path, name: str) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error)
    return InputError("cannot read a source", where=name, found=reason,
                      todo="check that it exists and may be read")  # fmt: skip
