"""What the three training steps share, whatever the family (method, section 4).

1. ``reader``: the ordinary reader; task loss.
2. ``decompose``: the split reader, started from step 1 and distilled from it.
3. ``binarize``: the same with the binarizer, started from step 2; task loss and recovery loss.

And ``adapt``: a finished reader to another task, everything that stored states depend on frozen
(the idea of Telly, arXiv 2304.05216), so that one store serves both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from btr.errors import UsageError
from btr.evaluate.resuming import file_digests, weight_files
from btr.readers.base import Mode
from btr.train.dropout import make_pool, use_pooled_dropout
from btr.train.loop import Loop, LoopSettings, Loss
from btr.train.optimizer import MasterAdamW
from btr.train.rules import Rule

Stage = Literal["reader", "decompose", "binarize", "adapt"]
MODE_OF: dict[Stage, Mode] = {
    "reader": "plain", "decompose": "decomposed", "binarize": "btr", "adapt": "btr",
}  # fmt: skip
STARTS_FROM: dict[Stage, Mode] = {
    "reader": "plain", "decompose": "plain", "binarize": "decomposed", "adapt": "btr",
}  # fmt: skip

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class StageSettings:
    """One training step; a loss whose weight is 0 is switched off.

    Attributes:
        stage: Which one.
        loop: Length and rates.
        token_budget: Most padded tokens of a batch.
        task_weight: Of the task's own loss.
        state_weight: Of the distillation of joint-layer states, steps 2 and 3.
        distil_share: Of a passage's tokens that it looks at: those that the teacher's query attends
            to most (paper: 0.5).
        answer_weight: Of the KL divergence from the teacher's answer distribution, steps 2 and 3.
        recovery_weight: Of the recovery loss, step 3.
        dropout: Of hidden states.
        precision: Of the network's arithmetic; its masters are float32 either way.
        rule: How states become bits, step 3 (``btr.train.rules``).
    """

    stage: Stage
    loop: LoopSettings
    token_budget: int = 6000
    task_weight: float = 1.0
    state_weight: float = 0.0
    distil_share: float = 0.5
    answer_weight: float = 0.0
    recovery_weight: float = 0.0
    dropout: float = 0.1
    precision: Literal["bf16", "fp32"] = "bf16"
    rule: Rule = "calibrated"

    @property
    def distils(self) -> bool:
        """Whether any loss looks at the teacher."""
        return bool(self.state_weight or self.answer_weight)


@dataclass(frozen=True)
class Places:
    """Where a step reads and writes.

    Attributes:
        start: Folder to start from: for step 1 any pretrained model, for step 2 the checkpoint of
            step 1, for step 3 that of step 2, to adapt that of step 3.
        checkpoint: Folder of the checkpoint that the step makes.
        work: Folder of the training state, ``log.jsonl`` and ``settings.json``.
        plain: Checkpoint of step 1, the teacher of steps 2 and 3; None without one.
    """

    start: Path
    checkpoint: Path
    work: Path
    plain: Path | None = None


class StageLoss(Loss):
    """The part that every family's loss has: a trained network, a frozen teacher, a projection.

    Args:
        network: Is trained.
        settings: Weights of the losses.
        teacher: The plain reader, in the same dtype; not a submodule, so never trained or shared.
        width: Of the states that the recovery loss projects back.
    """

    def __init__(
        self, network: nn.Module, settings: StageSettings, teacher: nn.Module | None, width: int
    ) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self._teacher = (teacher,)
        self.recovery: nn.Linear | None = None
        if settings.stage == "binarize" and settings.recovery_weight:
            self.recovery = nn.Linear(width, width)
            nn.init.eye_(self.recovery.weight)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring network and teacher to where and how they compute."""
        settings = self.settings
        self.to(device, dtype).train()
        pool = make_pool(settings.dropout, settings.loop.seed, dtype, device)
        use_pooled_dropout(self.network, pool)
        if self._teacher[0] is not None:
            self._teacher[0].to(device, dtype).eval().requires_grad_(False)


def begin_stage(
    settings: StageSettings, places: Places, accelerator: Accelerator | None
) -> Accelerator:
    """Seed everything and check that there is a loss, and that one that needs a teacher has one.

    Raises:
        UsageError: There is none.
    """
    recovers = settings.stage == "binarize" and settings.recovery_weight
    if not (settings.task_weight or settings.distils or recovers):
        raise UsageError(f"every loss of step {settings.stage} is switched off",
                         todo="raise --task-weight or another weight")  # fmt: skip
    if settings.distils and places.plain is None:
        raise UsageError(f"step {settings.stage} needs the plain reader", todo="give --plain")
    torch.manual_seed(settings.loop.seed)
    return accelerator or Accelerator()


def run_stage(
    loss: StageLoss,
    *,
    settings: StageSettings,
    plan: Callable[[int], Sequence[Batch]],
    evaluate: Callable[[], dict[str, float]],
    save: Callable[[Path, Any], None],
    places: Places,
    recorded: dict[str, object],
    accelerator: Accelerator,
    files: Sequence[Path] = (),
    describe: Callable[[Batch], str] = lambda _: "",
) -> dict[str, float]:
    """Train a loss's network and keep the best of it.

    Args:
        loss: Takes what ``plan`` makes; parameters that need no gradient stay as they are.
        settings: Length, rates, precision.
        plan: Epoch number to its batches.
        evaluate: Dev figures with a ``score``, of the loss's network.
        save: Writes a network of the loss's kind, with float32 weights, to a folder.
        places: Where the checkpoint and everything else go.
        recorded: Further settings to write down.
        accelerator: Devices, processes and trackers.
        files: What it learns from.
        describe: As for :class:`btr.train.loop.Loop`.

    Returns:
        The best dev figures.

    Raises:
        IncompatibleError: The step was begun with other settings, data or checkpoints.
    """
    frozen = {n: p.detach().clone() for n, p in loss.named_parameters() if not p.requires_grad}
    loss.prepare(accelerator.device, DTYPES[settings.precision])
    if accelerator.is_main_process:
        places.work.mkdir(parents=True, exist_ok=True)
    weights = [file for folder in (places.start, places.plain) if folder is not None
               for file in weight_files(folder)]  # fmt: skip
    recorded = {
        **{name: value for name, value in asdict(settings).items() if name != "loop"},
        "start": places.start,
        "plain": places.plain,
        **recorded,
        "sha256": file_digests([*files, *weights]),
    }
    named = [(n, p) for n, p in loss.named_parameters() if p.requires_grad]

    def make_optimizer(total: int) -> MasterAdamW:
        rates = settings.loop
        return MasterAdamW(
            named, lr=rates.lr, weight_decay=rates.weight_decay, warmup=rates.warmup, total=total,
            average=rates.average, relative=rates.relative,
        )  # fmt: skip

    def keep() -> None:
        # The masters, not their 16-bit shadows: half of the precision would be lost otherwise, and
        # what stayed as it was would change.
        exact = copy.deepcopy(loss.network).cpu().float()
        kept = frozen | loop.optimizer.result
        with torch.no_grad():
            for name, parameter in exact.named_parameters():
                parameter.copy_(kept[f"network.{name}"])
        save(places.checkpoint, exact)

    loop = Loop(
        settings.loop, plan=plan, loss=loss, make_optimizer=make_optimizer, evaluate=evaluate,
        keep=keep, folder=places.work, recorded=recorded, describe=describe,
        accelerator=accelerator,
    )  # fmt: skip
    return loop.run()
