"""A training step by its reader's family: the one entry to training, for the command and for code.

A reader is a folder; step 1 writes its ``plain`` checkpoint, step 2 ``decomposed`` and step 3
``btr``. State and logs lie in ``training/STAGE`` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator

from btr.errors import IncompatibleError, UsageError
from btr.models import PACKAGED, reader_folder, resolve
from btr.readers.checkpoint import read_config
from btr.readers.load import FAMILIES
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.train.stage import MODE_OF, STARTS_FROM, Places, Stage, StageSettings


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters of a task (method, section 4: the paper's, for T5 base).

    Attributes:
        steps: In all.
        query_budget: Tokens of a question.
        passages: Of a question.
        lr: Peak rate; the paper gives 4e-5 to 8e-5.
        input_budget: Tokens of a question and a passage together.
        batch: Questions of a step.
    """

    steps: int
    query_budget: int = 40
    passages: int = 40
    lr: float = 6e-5
    input_budget: int = 320
    batch: int = 8


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "nq": Preset(20_000),
        "triviaqa": Preset(20_000, query_budget=64),
        "webquestions": Preset(3_000),
        "fever": Preset(10_000),
        "mmlu": Preset(2_000, query_budget=256, passages=30),
    }
)


PAPER_LOSSES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "decompose": {"state_weight": 1.0, "answer_weight": 0.0},
        "binarize": {"state_weight": 0.0, "answer_weight": 0.0, "recovery_weight": 1.0},
    }
)
"""Beside the task's own loss: query-aware distillation in step 2, recovery in step 3."""


def places_of(
    reader: Path, stage: Stage, *, start: str = "", plain: str = "", distils: bool = True
) -> Places:
    """Where a step of a reader reads and writes.

    Args:
        reader: The reader's folder.
        stage: The step.
        start: A packaged model, a folder or a Hub id; "" for the step before in the same reader.
        plain: Folder of the teacher's checkpoint; "" for what step 2 starts from and, in step 3,
            the reader's own.
        distils: Whether a loss looks at the teacher.

    Raises:
        UsageError: Step 1 has nothing to start from, or an earlier step is missing.
    """
    before = STARTS_FROM[stage]
    if start:
        folder = Path(resolve(start)) if start in PACKAGED else reader_folder(start)
        for mode in (before, MODE_OF[stage]):
            if (folder / mode / "config.json").exists():
                folder = folder / mode
                break
    elif stage in ("reader", "adapt"):
        raise UsageError(f"step {stage} needs something to start from", todo="give --from")
    else:
        folder = reader / before
    # Step 2 starts from its teacher.
    teachers = {"decompose": folder, "binarize": reader / "plain"} if distils else {}
    teacher = Path(plain) if plain else teachers.get(stage)
    for needed in (folder, teacher):
        if needed is not None and not (needed / "config.json").exists():
            raise UsageError(f"step {stage} finds no checkpoint", where=str(needed),
                             todo="run the step before, or name one with --from and --plain",
                             )  # fmt: skip
    return Places(folder, reader / MODE_OF[stage], reader / "training" / stage, teacher)


def family_of(folder: Path) -> str:
    """Family of a checkpoint.

    Raises:
        IncompatibleError: None that btr can train.
    """
    kind = str(read_config(folder).get("model_type"))
    if kind not in FAMILIES:
        raise IncompatibleError("no training for this kind of model",
                                where=str(folder / "config.json"),
                                expected="model_type " + " or ".join(FAMILIES),
                                found=kind[:80])  # fmt: skip
    return kind


def train(
    settings: StageSettings,
    places: Places,
    data: Mapping[str, Any],
    *,
    layout: tuple[int, int] | None = None,
    budgets: Mapping[str, Any] | None = None,
    store: Path | None = None,
    start: str = "",
    recompute: bool = False,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Run one step of whatever family the start is.

    Args:
        settings: The step.
        places: Where it reads and writes.
        data: Fields of the family's data settings.
        layout: Layers below the cut and joint layers, for step 2.
        budgets: Fields of a new generative reader's configuration, for step 1.
        store: Where ``adapt`` finds states of passages; the others' are made first.
        start: What the user called the start.
        recompute: Gradient checkpointing.
        accelerator: Devices, processes and trackers.

    Returns:
        The best dev figures.

    Raises:
        UsageError: A setting does not belong to the family.
    """
    if family_of(places.start) == "bert":
        from btr.train.extractive import train_extractive
        from btr.train.span_sources import SpanDataSettings

        for what, given in (
            ("--recompute", recompute),
            (next(iter(budgets or {}), ""), budgets),
        ):
            if given:
                raise UsageError("not for extractive readers", found=what, todo="leave it out")
        return train_extractive(
            settings, SpanDataSettings(**_known(SpanDataSettings, data)), places, layout=layout,
            store=store,
            word_embeddings=start if start in PACKAGED else "", accelerator=accelerator,
        )  # fmt: skip
    from btr.train.fid import train_fid
    from btr.train.fid_examples import FidDataSettings

    config = replace(T5ReaderConfig(), **budgets) if budgets else None
    return train_fid(
        settings, FidDataSettings(**_known(FidDataSettings, data)), places, layout=layout,
        config=config, store=store, recompute=recompute, accelerator=accelerator,
    )  # fmt: skip


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, of those that a family has.

    Raises:
        UsageError: One that it does not have.
    """
    fields = kind.__dataclass_fields__
    for name in data:
        if name not in fields:
            raise UsageError("a setting of another family of readers", found=name,
                             expected=", ".join(fields))  # fmt: skip
    return dict(data)
