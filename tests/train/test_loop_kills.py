"""Training that is killed, while it saves its state too, ends in the weights of any other."""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_training import train

from forks import Worker, killed


class Run:
    """A training run that nobody kills.

    Attributes:
        weights: At the end.
        files: Of its last state.
        seconds: How long it took.
        saving: How long each state took to be saved.
    """

    def __init__(self, folder: Path) -> None:
        worker = Worker(train, folder)
        began = time.perf_counter()
        worker.go()
        self.saving, self.weights = [], None
        while self.weights is None:
            told = worker.told()
            if told == "saving":
                started = time.perf_counter()
            elif told == "saved":
                self.saving.append(time.perf_counter() - started)
            else:
                self.weights = told
        self.seconds = time.perf_counter() - began
        worker.close()
        self.files = state(folder)


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "state").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole"))
    assert len(run.saving) == 21
    return run


def killed_while_saving(folder: Path, whole: Run, draw: random.Random) -> bool:
    """Whether the kill came before all was saved."""
    worker = Worker(train, folder)
    worker.go()
    for _ in range(2 * draw.randrange(len(whole.saving)) + 1):
        told = worker.told()
    assert told == "saving"
    time.sleep(draw.uniform(0, statistics.median(whole.saving)))
    return worker.kill() and not worker.unheard


def goes_on(folder: Path, whole: Run) -> None:
    """The end of a run that was killed is that of one that was not, and nothing else is left."""
    found = Run(folder)
    assert found.weights == whole.weights
    assert found.files == whole.files
    # The state before the last one stays where the kill came just before it was removed.
    assert {path.name for path in folder.iterdir()} - {"state.old"} == {
        "state", "log.jsonl", "settings.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("what", "gate", "release"),
    [("kill -9 of a training run", 3, 20), ("kill -9 of one that saves its state", 5, 50)],
)
def test_a_killed_run_ends_in_the_same_weights(
    tmp_path: Path, effort: Callable[[str, int, int], int], whole: Run, what: str, gate: int,
    release: int,
) -> None:  # fmt: skip
    draw, done, kills = random.Random(what), 0, effort(what, gate, release)
    while done < kills:
        folder = tmp_path / "run"
        folder.mkdir()
        if "saves" in what:
            hit = killed_while_saving(folder, whole, draw)
        else:
            hit = killed(draw.uniform(0, whole.seconds), train, folder)
        goes_on(folder, whole)
        done += hit
        shutil.rmtree(folder)
