"""``btr add``, ``remove``, ``compact``, ``compress``: change a store; ``repair``: mend it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btr.cli.index import RayOption, WorkersOption, cluster_of, watch_build
from btr.cli.output import (
    JsonOption,
    StoreArgument,
    bytes_text,
    console,
    note,
    progress,
    write_json,
)
from btr.errors import InputError, UsageError

if TYPE_CHECKING:
    from btr.readers.base import Reader
    from btr.store.format import Manifest
    from btr.store.reader import TokenStore


def add(
    store: StoreArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(help="Files and folders, as for btr index.", show_default=False),
    ],
    replace: Annotated[
        bool,
        typer.Option("--replace", help="A passage whose id the store has with another text takes "
                     "its place; without this it is an error."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted addition.")
    ] = False,
    max_rejects: Annotated[
        int,
        typer.Option("--max-rejects", min=0, help="How many lines and documents may be unusable."),
    ] = 0,
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Add documents to a store, with the reader and settings that it was built with.

    What the store has already, by id and text, is passed over. Nobody sees a part of an addition.
    """
    from btr.indexing import build_index
    from btr.store.reader import TokenStore

    with TokenStore.open(store) as opened:
        size = opened.manifest.spec.passages_per_shard
        reader, settings = _own_reader(opened)
    watch_build(
        store,
        lambda show: build_index(
            sources, store, reader, max_rejects=max_rejects, resume=resume, add=True,
            replace_known=replace, progress=show, note=note,
            shard_passages=size,
        ),
        settings,
        json,
    )  # fmt: skip


def remove(
    store: StoreArgument,
    ids: Annotated[list[str] | None, typer.Argument(help="Passage ids.")] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option("--document", help="All passages of a document, as answers name it."),
    ] = None,
    ids_from: Annotated[
        Path | None,
        typer.Option("--ids-from", help="A file with one passage id a line.", exists=True,
                     dir_okay=False),
    ] = None,
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Remove passages: after this no question is answered from them.

    Their bytes stay in the store until btr compact.
    """
    from btr.store.change import remove_passages

    wanted = list(ids or [])
    if ids_from is not None:
        try:
            wanted += [line for line in ids_from.read_text(encoding="utf-8").split("\n") if line]
        except UnicodeDecodeError as error:
            raise InputError("not UTF-8", where=str(ids_from), found=str(error)) from None
    if not wanted and not documents:
        raise UsageError("nothing to remove", todo="give ids, --document or --ids-from")
    found: set[int] = set()

    def find(opened: TokenStore) -> set[int]:
        found.update(opened.ordinal(passage_id) for passage_id in wanted)
        missing = set(documents or [])
        if documents:
            for ordinal, passage in enumerate(opened.iter_passages()):
                if passage.document in documents and not opened.is_removed(ordinal):
                    found.add(ordinal)
                    missing.discard(passage.document)
        if missing:
            raise InputError("no passage is of this document", where=repr(min(missing)),
                             todo="name it as btr ask does")  # fmt: skip
        return found

    manifest = remove_passages(store, find)
    _report(store, manifest, f"{len(found):,} passages removed", json)


def compact(
    store: StoreArgument,
    json: JsonOption = "",
) -> None:
    """Rewrite a store without its removed passages, as one built from what is left."""
    from btr.retrieval.hybrid import build_indexes
    from btr.store.change import compact as run

    began = time.monotonic()
    with progress() as bar:
        task = bar.add_task("rewriting", total=None)
        manifest = run(
            store, build_indexes, lambda done, total: bar.update(task, completed=done, total=total)
        )
    _report(store, manifest, "compacted", json, time.monotonic() - began)


def compress(
    store: StoreArgument,
    ratio: Annotated[
        float,
        typer.Option("--ratio", min=0, max=0.5, help="Share of the other tokens that lose "
                     "their vectors (paper: 0.2)."),
    ] = 0.2,
    top: Annotated[
        int,
        typer.Option("--top", min=0, help="So many of the most frequent tokens are treated as "
                     "stop words too."),
    ] = 0,
    keep_stop_words: Annotated[
        bool,
        typer.Option("--keep-stop-words", help="Let stop words and punctuation have vectors of "
                     "their own."),
    ] = False,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's way: one vector for all occurrences of a stop "
                     "word, and the closest vectors of another token merge. Otherwise what is not "
                     "stored is worked out from its neighbours."),
    ] = False,
    lossless: Annotated[
        bool,
        typer.Option("--lossless", help="Also code the bits that are left: smaller, and a little "
                     "slower to read; needs numba."),
    ] = False,
    ray: RayOption = "",
    workers: WorkersOption = 2,
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Make a store smaller: stop words and some other tokens have no vectors of their own.

    The store changes when the smaller one is whole; who has it open keeps the old one.
    """
    from btr.compressing import Compression
    from btr.compressing import compress as run
    from btr.store.reader import TokenStore
    from btr.store.sizes import store_sizes

    with TokenStore.open(store) as opened:
        before = store_sizes(store, opened.manifest).state_bytes_per_token
        reader, _ = _own_reader(opened)
    began = time.monotonic()
    with progress() as bar:
        task = bar.add_task("counting", total=None)
        how = Compression(
            ratio, top, lossless, stop_words=not keep_stop_words, neighbours=not paper
        )
        manifest = run(
            store, reader, how,
            lambda stage, done, total: bar.update(task, description=stage, completed=done,
                                                  total=total),
            cluster_of(ray, workers),
        )  # fmt: skip
    seconds = time.monotonic() - began
    sizes = store_sizes(store, manifest)
    _report(
        store, manifest,
        f"{before:.1f} to {sizes.state_bytes_per_token:.1f} bytes a token, "
        f"{sizes.ratio_to_continuous:.1f} times smaller than fp32", json, seconds,
    )  # fmt: skip


def copy(
    store: StoreArgument,
    address: Annotated[
        str, typer.Argument(help="A folder on another file system, as s3://bucket/my.btr.",
                            show_default=False)
    ],
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Copy a store to another file system, from which btr ask and btr info read it in place."""
    from btr.store.remote import copy_store

    _report(store, copy_store(store, address), f"copied to {address}", json)


def repair(
    store: StoreArgument,
    sources: Annotated[
        list[Path],
        typer.Argument(help="Files and folders that it was built from.", show_default=False),
    ],
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Make damaged or missing files of a store again from its sources, to the byte.

    Only what is damaged is encoded. A store that was added to or compressed cannot be repaired.
    """
    from btr.repairing import repair_store

    with progress("") as bar:
        task = bar.add_task("reading sources", total=None)
        mended = repair_store(
            sources, store,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    write_json(json, {"store": str(store), "mended": mended})
    said = ", ".join(mended) if mended else "nothing was damaged"
    console(json).print(f"{store}: {'mended ' if mended else ''}{said}")


def _own_reader(store: TokenStore) -> tuple[Reader, dict[str, str]]:
    """The reader that made a store, in its arithmetic, and the settings that say so."""
    from btr.readers.load import load_store_reader

    settings = store.manifest.spec.settings
    own = {name: str(settings[name]) for name in ("reader", "mode", "dtype")}
    return load_store_reader(settings), own


def _report(
    store: Path, manifest: Manifest, done: str, json: str, seconds: float | None = None
) -> None:
    """Tell what a store has become, and of long work how long it took and its peak of memory."""
    took = {}
    if seconds is not None:
        from btr.machine import peak_rss_mb

        took = {"seconds": round(seconds, 2), "peak_rss_mb": round(peak_rss_mb(), 1)}
    size = sum(entry.bytes for entry in manifest.files)
    console(json).print(
        f"{store}: {done}; {manifest.passages:,} passages, "
        f"{manifest.removed:,} removed ones not yet compacted, {bytes_text(size)} in all"
    )
    write_json(
        json,
        {
            "store": str(store),
            "generation": manifest.generation,
            "passages": manifest.passages,
            "removed": manifest.removed,
            "bytes": size,
            **took,
        },
    )
