"""File operations that remember what a disk would have after the power fails.

A file has the bytes of its last sync for certain, and anything between these and what was written
since: all of it, a part, or zeros in its place. A folder has the names of its last sync for
certain; each name that was given or taken since may have been or not.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btr import files

OPERATIONS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "database")
PAGE = 512


class PowerLoss(files.Files):
    """Real operations below a folder, of which any moment can be the last.

    Args:
        root: The folder; what is in it at the beginning is on the disk.
        before: Called before each operation; it may call :meth:`after_crash`.
    """

    def __init__(self, root: Path, before: Callable[[PowerLoss], None]) -> None:
        self.root, self._before = root, before
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for folder, _, names in os.walk(root):
            self._sync(Path(folder))
            for name in names:
                self._sync(Path(folder, name))
        real = files.Files()
        for name in OPERATIONS:
            setattr(self, name, self._watched(name, getattr(real, name)))

    def _watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._before(self)
            if name == "fsync":
                # As on a disk, and no wait for one: what counts is what is remembered.
                self._sync(Path(f"/proc/self/fd/{args[0]}").resolve())
                return None
            return operation(*args, **kwargs)

        return run

    def _sync(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self._names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self._bytes[inode] = path.read_bytes()

    def after_crash(self, target: Path, draw: random.Random) -> None:
        """Write one state that the disk may be in, if the power fails now, to a new folder."""
        now = {path.stat().st_ino: path for path in self.root.rglob("*")}
        self._folder(self.root, target, now, draw)

    def _folder(
        self, source: Path, target: Path, now: dict[int, Path], draw: random.Random
    ) -> None:
        target.mkdir()
        synced = self._names.get(source.stat().st_ino, {})
        current = {entry.name: entry.inode() for entry in os.scandir(source)}
        # Mostly all of the names or none, as a journal has them; sometimes any mixture.
        mood = draw.choice(["synced", "current", "mixed"])
        for name in {**synced, **current}:
            kind = draw.choice(["synced", "current"]) if mood == "mixed" else mood
            inode = (synced if kind == "synced" else current).get(name)
            if inode is None or inode not in now:
                # A file whose last name is gone may come back with its name.
                if inode in self._bytes:
                    (target / name).write_bytes(self._bytes[inode])
                continue
            path = now[inode]
            if stat.S_ISDIR(path.stat().st_mode):
                self._folder(path, target / name, now, draw)
            else:
                (target / name).write_bytes(self._content(path, draw))

    def _content(self, path: Path, draw: random.Random) -> bytes:
        current, synced = path.read_bytes(), self._bytes.get(path.stat().st_ino)
        if synced == current:
            return current
        before = b"" if synced is None else synced
        kind = draw.randrange(5)
        if kind == 0:
            return before
        if kind == 1:
            return current
        if kind == 2:
            return current[: draw.randrange(len(current) + 1)]
        if kind == 3:  # the length is there, the bytes are not
            return before + bytes(max(0, len(current) - len(before)))
        pages = [current[at : at + PAGE] for at in range(0, len(current), PAGE)]
        return b"".join(page if draw.random() < 0.5 else bytes(len(page)) for page in pages)
