"""``btr index``: documents to a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btr.cli.output import (
    DtypeOption,
    JsonOption,
    ReaderOption,
    bytes_text,
    console,
    note,
    progress,
    write_json,
)
from btr.errors import RejectsError, UsageError

if TYPE_CHECKING:
    from btr.cluster import Cluster
    from btr.indexing import IndexProgress
    from btr.readers.base import Reader


RayOption = Annotated[
    str,
    typer.Option("--ray", metavar="ADDRESS", help="Work on a Ray cluster whose machines all see "
                 "the store's folder; 'local' starts workers on this machine."),
]  # fmt: skip
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Workers on the Ray cluster.")]


def cluster_of(address: str, workers: int) -> Cluster | None:
    """Where to work; None for this process alone."""
    from btr.cluster import Cluster

    return Cluster(address, workers) if address else None


def index(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Files and folders: txt, md, html, pdf, jsonl, tsv, and .gz of these.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The store's folder; it must not exist yet.", show_default=False
        ),
    ] = None,
    reader: ReaderOption = "minilm",
    mode: Annotated[
        Literal["btr", "decomposed"],
        typer.Option("--mode", help="btr stores one bit a dimension; decomposed stores float16."),
    ] = "btr",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted build.")
    ] = False,
    ray: RayOption = "",
    workers: WorkersOption = 2,
    states: Annotated[
        str,
        typer.Option(
            "--states",
            metavar="top:N",
            help="Store states for N passages only, those "
            "that --asked finds most, then those at the beginning of documents; the "
            "others' are made when a question needs them.",
        ),
    ] = "",
    asked: Annotated[
        Path | None,
        typer.Option(
            "--asked", help="Questions that users ask, one a line.", exists=True, dir_okay=False
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build nothing: say what it would take, from a sample."),
    ] = False,
    gpu_tflops: Annotated[
        float,
        typer.Option(
            "--gpu-tflops",
            min=1,
            help="For --dry-run: what a GPU does in this work, in "
            "10^12 operations a second; an assumption, not a measurement.",
        ),
    ] = 200.0,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="For --dry-run: so many of them.")] = 1,
    dtype: DtypeOption = None,
    max_rejects: Annotated[
        int,
        typer.Option(
            "--max-rejects",
            min=0,
            help="How many lines and documents may be unusable; more give status 8.",
        ),
    ] = 0,
    json: JsonOption = "",
) -> None:
    """Build a store: read sources, cut passages, encode them, index them for retrieval."""
    from btr.indexing import build_index
    from btr.machine import DTYPES, default_dtype
    from btr.models import SHIPPED
    from btr.readers.load import load_reader

    if dry_run:
        output = None
    elif output is None:
        raise UsageError("no place for the store", todo="give -o, or --dry-run")
    # The store remembers the reader by name; a folder's must hold wherever it is opened from.
    if reader not in SHIPPED and Path(reader).expanduser().is_dir():
        reader = str(Path(reader).expanduser().absolute())
    chosen = dtype or default_dtype()
    loaded = load_reader(reader, mode, dtype=DTYPES[chosen])
    if output is None:
        _estimate(sources, loaded, gpu_tflops, gpus, json)
        return
    target = output
    stateful = None
    if states:
        from btr.choosing import choose_passages, parse_choice
        from btr.data.ledger import Ledger
        from btr.data.sources import read_passages

        top = parse_choice(states)
        lines = asked.read_text(encoding="utf-8").splitlines() if asked else []
        with Ledger(max_rejects=max_rejects) as ledger:
            stateful = choose_passages(read_passages(sources, ledger=ledger), lines, top)
    watch_build(
        target,
        lambda show: build_index(sources, target, loaded, max_rejects=max_rejects, resume=resume,
                                 cluster=cluster_of(ray, workers), stateful=stateful,
                                 progress=show, note=note),
        {"reader": reader, "mode": mode, "dtype": chosen},
        json,
    )  # fmt: skip


def _estimate(sources: list[Path], reader: Reader, gpu_tflops: float, gpus: int, json: str) -> None:
    """Print what a build would take."""
    from dataclasses import asdict

    from btr.planning import estimate_build

    with progress("passages") as bar:
        task = bar.add_task("reading", total=None, rate="-")
        found = estimate_build(
            sources, reader, tflops=gpu_tflops,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    out = console(json)
    for name, value in (
        ("passages", f"{found.passages:,}"),
        ("tokens", f"{found.tokens:,}"),
        ("in all", bytes_text(sum(found.bytes.values()))),
        *((f"  {part}", bytes_text(size)) for part, size in found.bytes.items() if size),
        ("here", f"{found.hours:.2f} hours, {found.passages_per_s:.0f} passages a second"),
        ("one GPU" if gpus == 1 else f"{gpus} GPUs",
         f"{found.gpu_hours / gpus:.3f} hours of encoding, if each does {gpu_tflops:g} TFLOP/s"),
        ("from", f"{bytes_text(found.read_bytes)} read of {bytes_text(found.source_bytes)}"),
    ):  # fmt: skip
        out.print(f"{name:<10}  {value}")
    hours = {"gpus": gpus, "gpu_hours": found.gpu_hours / gpus}
    write_json(json, asdict(found) | hours | {"bytes_in_all": sum(found.bytes.values())})


def watch_build(
    store: Path,
    build: Callable[[Callable[[IndexProgress], None]], object],
    about: Mapping[str, object],
    json: str,
) -> None:
    """Run a build with a progress bar, then print and write its figures.

    Raises:
        RejectsError: More was rejected than allowed; the figures are printed all the same.
    """
    tracker = _Tracker()
    failed: RejectsError | None = None
    with progress("passages") as bar:
        task = bar.add_task("starting", total=None, rate="-")

        def show(state: IndexProgress) -> None:
            tracker.update(state)
            bar.update(task, description=state.stage, completed=state.source_bytes,
                       total=state.total_bytes or None, rate=f"{tracker.rate:.0f}")  # fmt: skip

        try:
            build(show)
        except RejectsError as error:
            failed = error  # the store is there all the same
    report: dict[str, Any] = {"store": str(store), **about}
    report |= tracker.figures() | _figures(store)
    console(json).print(
        f"{store}: {report['passages']:,} passages, {report['tokens']:,} tokens, "
        f"{report['state_bytes_per_token']:.1f} bytes a token, "
        f"{bytes_text(report['bytes'])} in all\n"
        f"{report['passages_per_s']:.0f} passages a second, {report['seconds']:.1f} s, peak memory "
        f"{bytes_text(1e6 * report['peak_rss_mb'])}"
    )
    if failed:
        raise failed
    write_json(json, report)


class _Tracker:
    """Speed of a build, from its progress."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._encoding_from = self._encoding_to = 0.0
        self._state: IndexProgress | None = None

    def update(self, state: IndexProgress) -> None:
        """Take note of where the build stands."""
        before, self._state = self._state, state
        stage = before.stage if before else ""
        if state.stage == "encoding" and stage != "encoding":
            self._encoding_from = time.perf_counter()
        # The first sign of the next stage still counts: the last vectors are made before it.
        if "encoding" in (stage, state.stage):
            self._encoding_to = time.perf_counter()

    @property
    def rate(self) -> float:
        """Passages a second while encoding; those committed before do not count."""
        passages = self._state.passages if self._state else 0
        seconds = self._encoding_to - self._encoding_from
        return passages / seconds if seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """For the report."""
        from btr.machine import peak_rss_mb

        return {
            "seconds": round(time.perf_counter() - self._begun, 2),
            "passages_per_s": round(self.rate, 1),
            "resumed_from_passages": self._state.skipped if self._state else 0,
            "peak_rss_mb": round(peak_rss_mb(), 1),
        }


def _figures(store: Path) -> dict[str, Any]:
    """What the finished store says of itself."""
    from btr.store.reader import TokenStore
    from btr.store.sizes import store_sizes

    with TokenStore.open(store) as opened:
        manifest = opened.manifest
    sizes = store_sizes(store, manifest)
    return {
        "passages": manifest.passages,
        "tokens": manifest.tokens,
        "truncated": manifest.truncated,
        "counts": dict(manifest.counts),
        "bytes": sum(sizes.by_part.values()),
        "state_bytes_per_token": round(sizes.state_bytes_per_token, 3),
    }
