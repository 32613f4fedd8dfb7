"""The training loop: steps on one process or many, a state on disk that is whole or absent.

Devices and processes are accelerate's: ``torchrun`` or ``accelerate launch`` starts one process a
GPU, each takes its share of every step's batches, and gradients are averaged. The state is not
accelerate's, which pickles: ``state.safetensors`` holds masters and moments, ``state.json`` the
step and the settings. It is written beside the last one and renamed over it, so a kill at any
moment leaves a complete one. Batches are a function of (seed, epoch) and randomness one of (seed,
step, process), so a resumed run repeats what it would have done, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from btr.errors import InputError
from btr.evaluate.resuming import as_recorded, require_same
from btr.files import replaced_folder, write_file
from btr.train.optimizer import MasterAdamW

Batch = TypeVar("Batch")
LossParts = dict[str, Tensor]


class Loss(nn.Module):
    """Holds all that is trained; maps a batch to named loss parts, each already weighted."""

    def at(self, progress: float) -> None:
        """Called before every step with the share of training that is done, 0 .. 1."""


REPORT_STEPS = 100
"""Steps between two lines of the log."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, how fast, and when to look and to save.

    Attributes:
        epochs: Passes over the data; with ``steps``, at most.
        lr: Peak learning rate.
        steps: Steps in all; 0 for whole epochs.
        accumulate: Batches of every process that make one step.
        evaluate_every: Steps between two looks at dev; 0 for one after every epoch.
        patience: Looks without a better score after which to stop; 0 for never.
        weight_decay: Of matrices.
        warmup: Steps of linear warm-up.
        seed: Of batches and dropout.
        state_minutes: Between two states on disk; there is also one after every look at dev.
        max_bad_steps: Steps in a row without a finite loss after which the run ends.
        relative: The rate is in proportion to each parameter's size.
        average: Of the steps, the last ones, as a share, whose weights' mean is kept; 0 to keep
            weights as they are.
    """

    epochs: int
    lr: float
    steps: int = 0
    accumulate: int = 1
    evaluate_every: int = 0
    patience: int = 0
    weight_decay: float = 0.01
    warmup: int = 200
    seed: int = 1
    state_minutes: float = 5.0
    max_bad_steps: int = 5
    relative: bool = False
    average: float = 0.0


def save_state(folder: Path, optimizer: MasterAdamW, record: dict[str, object]) -> None:
    """Write the whole training state to ``folder``, replacing the one before it."""
    with replaced_folder(folder) as beside:
        save_file({n: t.cpu() for n, t in optimizer.state().items()}, beside / "state.safetensors")
        (beside / "state.json").write_text(json.dumps(record))


def load_state(folder: Path, optimizer: MasterAdamW, settings: dict[str, object]) -> dict[str, Any]:
    """Read a state back, also when the kill came between its two renames; {} if there is none.

    Raises:
        IncompatibleError: The state was made with other settings.
    """
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            record: dict[str, Any] = json.loads((candidate / "state.json").read_text())
            require_same(record["settings"], settings, candidate)
            optimizer.load(load_file(candidate / "state.safetensors"))
            return record
    return {}


class Loop(Generic[Batch]):
    """Runs epochs of batches through ``loss`` and an optimizer.

    Args:
        settings: Length and rates.
        plan: Epoch number to its batches, deterministic and the same in every process.
        loss: The sum of its parts is minimised.
        make_optimizer: Given the number of steps, the optimizer.
        evaluate: Called in the first process; returns figures to log, of which ``score`` counts.
        keep: Called in the first process when ``score`` is the best so far.
        folder: Where the state, ``settings.json`` and ``log.jsonl`` live.
        recorded: Further settings, which a run that goes on must have too.
        describe: Where the examples of a batch come from, to be named where they give no finite
            loss.
        accelerator: Devices, processes and trackers; made if not given.
    """

    def __init__(
        self,
        settings: LoopSettings,
        *,
        plan: Callable[[int], Sequence[Batch]],
        loss: Loss,
        make_optimizer: Callable[[int], MasterAdamW],
        evaluate: Callable[[], dict[str, float]],
        keep: Callable[[], None],
        folder: Path,
        recorded: Mapping[str, object],
        describe: Callable[[Batch], str] = lambda _: "",
        accelerator: Accelerator | None = None,
    ) -> None:
        self.describe = describe
        self.settings, self.evaluate, self.keep, self.folder = settings, evaluate, keep, folder
        self.accelerator = accelerator or Accelerator()
        processes = {"processes": self.accelerator.num_processes}
        self.recorded = as_recorded({**asdict(settings), **processes, **recorded})
        share = settings.accumulate * self.accelerator.num_processes
        self.plans: list[list[Batch]] = []
        self.total = 0
        for epoch in range(settings.epochs):
            if settings.steps and self.total >= settings.steps:
                break
            self.plans.append(list(plan(epoch)))
            self.total += math.ceil(len(self.plans[-1]) / share)
        if settings.steps:
            self.total = min(self.total, settings.steps)
        self.loss = loss
        self.prepared = self.accelerator.prepare_model(loss)
        self.optimizer = make_optimizer(self.total)

    def _steps(self) -> Iterator[tuple[int, list[Batch], bool]]:
        """Step numbers, this process's batches, and whether dev is to be looked at after them."""
        here, apart = self.accelerator.process_index, self.accelerator.num_processes
        share, every = self.settings.accumulate * apart, self.settings.evaluate_every
        step = 0
        for batches in self.plans:
            for first in range(0, len(batches), share):
                if step == self.total:
                    return
                group = batches[first : first + share]
                if apart > 1 and len(group) < share:
                    # Every process must have its batches: the epoch's first ones fill up.
                    group += (batches * share)[: share - len(group)]
                ended = first + share >= len(batches)
                look = (step + 1) % every == 0 if every else ended
                yield step, group[here::apart], look or step + 1 == self.total
                step += 1

    def run(self) -> dict[str, float]:
        """Train to the end (or from the last state to the end); returns the best figures.

        Raises:
            InputError: ``max_bad_steps`` steps in a row had no finite loss or gradient.
            IncompatibleError: The folder holds the state of a run with other settings.
        """
        record = load_state(self.folder / "state", self.optimizer, self.recorded)
        if self.accelerator.is_main_process:
            text = json.dumps(self.recorded, indent=2) + "\n"
            write_file(self.folder / "settings.json", text.encode())
        done: int = record.get("step", 0)
        best: dict[str, float] = record.get("best", {})
        stale: int = record.get("stale", 0)
        started = saved = time.monotonic()
        sums: dict[str, float] = {}
        counted = left_out = bad = 0
        for step, batches, look in self._steps():
            if step < done:
                continue
            if self.settings.patience and stale >= self.settings.patience:
                break
            parts = self._step(step, batches)
            if parts:
                counted, bad = counted + 1, 0
            else:
                left_out, bad = left_out + 1, bad + 1
                self._log(step, {}, {"not_finite": self.describe(batches[0])})
            if bad >= self.settings.max_bad_steps:
                raise InputError("the loss or its gradient is not finite",
                                 where=f"{bad} times up to step {step + 1}",
                                 found=self.describe(batches[0]),
                                 todo="lower --lr, or look for broken texts in the data; the last "
                                 f"good state is in {self.folder / 'state'}")  # fmt: skip
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part
            if counted + left_out == REPORT_STEPS or look:
                left = (self.total - step - 1) * (time.monotonic() - started) / (step + 1 - done)
                losses = {name: round(x / counted, 4) for name, x in sums.items()}
                progress = {"of": self.total, "eta_min": round(left / 60, 1)}
                self._log(step, losses, {**progress, "left_out": left_out})
                sums, counted, left_out = {}, 0, 0
            if look:
                figures = self._look()
                self._log(step, {f"dev.{n}": x for n, x in figures.items()}, {"dev": figures})
                if better := not best or figures["score"] >= best["score"]:
                    best = figures
                    if self.accelerator.is_main_process:
                        self.keep()
                stale = 0 if better else stale + 1
            if look or time.monotonic() - saved > 60 * self.settings.state_minutes:
                state = {"step": step + 1, "best": best, "stale": stale, "settings": self.recorded}
                if self.accelerator.is_main_process:
                    save_state(self.folder / "state", self.optimizer, state)
                saved = time.monotonic()
        self.accelerator.end_training()
        return best

    def _step(self, step: int, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimizer step; its loss parts, or {} where it was not finite and was left out."""
        # Dropout of a step depends on the step and the process, so a resumed run repeats it.
        torch.manual_seed((self.settings.seed * 1_000_003 + step) * 1_009
                          + self.accelerator.process_index)  # fmt: skip
        self.loss.at(step / self.total)
        sums: dict[str, float] = {}
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            # Gradients of several processes are averaged once, with the last batch.
            with nullcontext() if last else self.accelerator.no_sync(self.prepared):
                parts: LossParts = self.prepared(batch)
                total = torch.stack(list(parts.values())).sum() / len(batches)
                self.accelerator.backward(total)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach()) / len(batches)
        finite = torch.tensor(float(all(map(math.isfinite, sums.values()))))
        together = self.accelerator.reduce(finite.to(self.accelerator.device), "mean")
        if float(together) < 1:
            self.optimizer.clear()
            return {}
        try:
            self.optimizer.step(step)
        except FloatingPointError:
            return {}
        return sums

    def _look(self) -> dict[str, float]:
        """Dev figures, worked out in the first process; the others get their score alone."""
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            with self.optimizer.showing_result():
                figures = self.evaluate()
        score = torch.tensor(figures.get("score", 0.0), device=self.accelerator.device)
        return figures | {"score": float(broadcast(score))}

    def _log(self, step: int, values: dict[str, float], rest: dict[str, object]) -> None:
        """A line for the log file and the screen, and values for the trackers."""
        if not self.accelerator.is_main_process:
            return
        self.accelerator.log(values, step=step + 1)
        line = {"step": step + 1, **({} if "dev" in rest else values), **rest}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
