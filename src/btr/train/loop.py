"""The training loop: batches, steps, a state on disk that is whole or absent, exact resume.

The state folder holds ``state.safetensors`` (masters and moments) and ``state.json`` (the step and
the settings). It is written beside the last one and renamed over it, so a kill at any moment leaves
a complete one. Batches are a function of (seed, epoch), so a resumed run sees what it would have
seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from btr.errors import IncompatibleError
from btr.files import replaced_folder
from btr.train.optimizer import MasterAdamW

Batch = TypeVar("Batch")
LossParts = dict[str, Tensor]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast; a state goes to disk every ``state_minutes`` and after every epoch."""

    epochs: int
    lr: float
    weight_decay: float = 0.01
    warmup: int = 200
    seed: int = 1
    state_minutes: float = 5.0
    max_bad_steps: int = 5


def save_state(folder: Path, optimizer: MasterAdamW, record: dict[str, object]) -> None:
    """Write the whole training state to ``folder``, replacing the one before it."""
    with replaced_folder(folder) as beside:
        save_file({n: t.cpu() for n, t in optimizer.state().items()}, beside / "state.safetensors")
        (beside / "state.json").write_text(json.dumps(record))


def load_state(
    folder: Path, optimizer: MasterAdamW, settings: dict[str, object]
) -> dict[str, object]:
    """Read a state back, also when the kill came between its two renames; {} if there is none.

    Raises:
        IncompatibleError: The state was made with other settings.
    """
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            record: dict[str, object] = json.loads((candidate / "state.json").read_text())
            if record["settings"] != settings:
                raise IncompatibleError(
                    "the training state has other settings",
                    where=str(candidate),
                    expected=json.dumps(settings),
                    found=json.dumps(record["settings"]),
                    todo="remove the folder to start again, or use the same settings",
                )
            optimizer.load(load_file(candidate / "state.safetensors"))
            return record
    return {}


class Loop(Generic[Batch]):
    """Runs epochs of batches through ``loss`` and an optimizer.

    Args:
        settings: Length and rates.
        plan: Epoch number to its batches, deterministic.
        loss: A batch to named loss parts, each already weighted; their sum is minimised.
        make_optimizer: Given the number of steps, the optimizer.
        evaluate: Called after every epoch; returns figures to log, of which ``score`` counts.
        keep: Called when ``score`` is the best so far.
        folder: Where the state and ``log.jsonl`` live.
    """

    def __init__(
        self,
        settings: LoopSettings,
        *,
        plan: Callable[[int], Sequence[Batch]],
        loss: Callable[[Batch], LossParts],
        make_optimizer: Callable[[int], MasterAdamW],
        evaluate: Callable[[], dict[str, float]],
        keep: Callable[[], None],
        folder: Path,
    ) -> None:
        self.settings, self.plan, self.loss = settings, plan, loss
        self.evaluate, self.keep, self.folder = evaluate, keep, folder
        self.plans = [list(plan(e)) for e in range(settings.epochs)]
        self.total = sum(len(p) for p in self.plans)
        self.optimizer = make_optimizer(self.total)

    def _steps(self) -> Iterator[tuple[int, Batch, bool]]:
        step = 0
        for batches in self.plans:
            for i, batch in enumerate(batches):
                yield step, batch, i + 1 == len(batches)
                step += 1

    def run(self) -> dict[str, float]:
        """Train to the end (or from the last state to the end); returns the best figures.

        Raises:
            FloatingPointError: ``max_bad_steps`` steps in a row had no finite loss or gradient.
            IncompatibleError: The folder holds the state of a run with other settings.
        """
        settings = asdict(self.settings)
        record = load_state(self.folder / "state", self.optimizer, settings)
        done = int(str(record.get("step", 0)))
        best: dict[str, float] = record.get("best", {})  # type: ignore[assignment]
        started = saved = time.monotonic()
        sums: dict[str, float] = {}
        counted = bad = 0
        for step, batch, epoch_ends in self._steps():
            if step < done:
                continue
            parts = self._step(step, batch)
            bad = 0 if parts else bad + 1
            if bad >= self.settings.max_bad_steps:
                raise FloatingPointError(
                    f"no finite loss or gradient, {bad} times up to step {step}"
                )
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part
            counted += 1
            if counted == 100 or epoch_ends:
                left = (self.total - step - 1) * (time.monotonic() - started) / (step + 1 - done)
                losses = {name: round(x / counted, 4) for name, x in sums.items()}
                self._log({"step": step + 1, "of": self.total, **losses, "eta_min": left / 60})
                sums, counted = {}, 0
            if epoch_ends:
                figures = self.evaluate()
                self._log({"step": step + 1, "dev": figures})
                if not best or figures["score"] >= best["score"]:
                    best = figures
                    self.keep()
            if epoch_ends or time.monotonic() - saved > 60 * self.settings.state_minutes:
                state = {"step": step + 1, "best": best, "settings": settings}
                save_state(self.folder / "state", self.optimizer, state)
                saved = time.monotonic()
        return best

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step; its loss parts, or {} where it was not finite and was left out."""
        # Dropout of a step depends on the step alone, so a resumed run repeats it.
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        parts = self.loss(batch)
        total = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(total.detach()):
            return {}
        total.backward()  # type: ignore[no-untyped-call]
        try:
            self.optimizer.step(step)
        except FloatingPointError:
            return {}
        return {name: float(part.detach()) for name, part in parts.items()}

    def _log(self, line: dict[str, object]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
