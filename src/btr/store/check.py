"""Check every byte of a store and list all that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from btr import files
from btr.errors import BtrError, CorruptError
from btr.store.coding import Coder, load_coder, undecodable
from btr.store.format import Manifest, PassageState
from btr.store.generations import Lease
from btr.store.names import (
    is_file_name,
    manifest_generation,
    manifest_name,
    removed_name,
)
from btr.store.reader import check_files
from btr.store.removed import load_removed
from btr.store.shard import StateRecord
from btr.store.shard_file import ShardFile


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        path: The store.
        files: Files checked, the manifest among them.
        bytes: Their size.
        passages: Passages that the manifest promises; 0 if it is damaged itself.
        damage: All that is wrong, one error each, in the order found; empty for a sound store.
    """

    path: Path
    files: int
    bytes: int
    passages: int
    damage: tuple[BtrError, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage


def verify(path: Path | str, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read a whole store and check all sizes, digests, checksums, and that no file is extra.

    Args:
        path: The store's folder.
        progress: Called with (bytes checked, bytes in all) now and then.

    Returns:
        A report of all damage; damage is not raised.

    Raises:
        UsageError: There is no store.
        IncompatibleError: A newer version wrote it.
        ResourceError: The disk itself reports errors.
    """
    path = Path(path)
    try:
        lease = Lease(path)
    except CorruptError as error:
        return VerifyReport(path, 1, 0, 0, (error,))
    try:
        return _verify(path, lease.manifest, progress)
    finally:
        lease.release()


def _verify(
    path: Path, manifest: Manifest, progress: Callable[[int, int], None] | None
) -> VerifyReport:
    manifest_bytes = len(manifest.encode())
    named = manifest.files
    done, total = manifest_bytes, manifest_bytes + sum(entry.bytes for entry in named)
    damage: list[BtrError] = list(check_files(path, manifest))
    for entry in named:
        file = path / entry.name
        digest = files.new_digest()
        try:
            for chunk in files.read_chunks(file, entry.bytes):
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        except CorruptError:
            continue  # missing or another size: reported above
        if digest.hexdigest() != entry.sha256:
            damage.append(CorruptError("a file's content is not what was written", where=str(file),
                                       expected=f"digest {entry.sha256}",
                                       found=digest.hexdigest()))  # fmt: skip
    sizes = {entry.name: entry.bytes for entry in named}
    if manifest.removed:
        name = removed_name(manifest.generation)
        try:
            load_removed(path / name, manifest, sizes[name])
        except BtrError as error:
            damage.append(error)
    damage.extend(_check_records(path, manifest))
    known = {manifest_name(manifest.generation), *sizes}
    for name, is_folder in files.list_tree(path):
        if is_folder or name in known:
            continue
        # What older generations leave while someone reads them is no damage.
        if not is_file_name(name) and manifest_generation(name) is None:
            damage.append(CorruptError("a file that does not belong to the store",
                                       where=str(path / name), todo="remove it"))  # fmt: skip
    # A missing file is found by more than one check; it is one fault.
    faults = tuple({str(error): error for error in damage}.values())
    return VerifyReport(path, len(known), total, manifest.passages, faults)


def _check_records(path: Path, manifest: Manifest) -> Iterator[BtrError]:
    """Damage of every shard, down to the records."""
    tokens = truncated = opened = 0
    store_id = manifest.spec.store_id
    coder = None
    try:
        coder = load_coder(path, manifest)
    except BtrError as error:
        yield error
    for entry in manifest.shards:
        name, n = entry.name, entry.passages
        try:
            shard = ShardFile(path / name, manifest.spec, store_id, entry.number, n, entry.bytes)
        except BtrError as error:
            yield error
            continue
        tokens += shard.header.tokens
        truncated += shard.header.truncated
        shard_tokens = shard_truncated = broken = 0
        for record in range(n):
            try:
                found = shard.state(record)
                if not (isinstance(found, StateRecord) and found.is_absent):
                    state = _decoded(found, coder)
                    if state is None:
                        raise undecodable(f"{path / name}, passage {record} of the shard")
                    shard_tokens += len(state.rows)
                    shard_truncated += state.truncated
            except CorruptError as error:
                broken += 1
                yield error
            try:
                shard.passage(record)
            except CorruptError as error:
                yield error
        try:
            shard.vectors()
        except CorruptError as error:
            yield error
        header = (shard.header.tokens, shard.header.truncated)
        if not broken and (shard_tokens, shard_truncated) != header:
            yield CorruptError("a shard's header counts tokens that are not there",
                               where=str(path / name), expected=str(header),
                               found=str((shard_tokens, shard_truncated)))  # fmt: skip
        opened += 1
    totals = (manifest.tokens, manifest.truncated)
    if opened == len(manifest.shards) and (tokens, truncated) != totals:
        where = path / manifest_name(manifest.generation)
        yield CorruptError("the manifest's totals are not those of the shards",
                           where=str(where), expected=str(totals),
                           found=str((tokens, truncated)))  # fmt: skip


def _decoded(state: PassageState | StateRecord, coder: Coder | None) -> PassageState | None:
    if isinstance(state, PassageState):
        return state
    return coder.decode([state])[0] if coder else None
