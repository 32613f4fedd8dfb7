"""A loop that trains a small network, and dies where it is told to or is killed."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from btr.train import loop as training
from btr.train.loop import Loop, LoopSettings, Loss
from btr.train.optimizer import MasterAdamW

SETTINGS = LoopSettings(epochs=3, lr=0.05, warmup=2, state_minutes=0.0, average=0.4)


class KilledError(Exception):
    """Stands for a kill: nothing of the loop runs after it."""


def build(folder: Path, *, die_at: int | None = None, settings: LoopSettings = SETTINGS):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)).bfloat16()
    steps = {"n": 0}
    kept: list[float] = []

    class Mse(Loss):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: int) -> dict[str, torch.Tensor]:
            if steps["n"] == die_at:
                raise KilledError
            steps["n"] += 1
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(batch))
            y = self.network(x.bfloat16()).float()
            return {"mse": (y - x.sum(1, keepdim=True)).square().mean()}

    loop: Loop[int] = Loop(
        settings,
        plan=lambda epoch: [100 * epoch + i for i in range(7)],
        loss=Mse(),
        make_optimizer=lambda total: MasterAdamW(
            network.named_parameters(),
            lr=settings.lr,
            weight_decay=0.01,
            warmup=2,
            total=total,
            average=settings.average,
        ),
        evaluate=lambda: {"score": float(steps["n"])},
        keep=lambda: kept.append(1.0),
        folder=folder,
        describe=lambda batch: f"batch {batch}",
        recorded={"dropout": 0.3, "data": {"sources": [Path("a")]}},
    )
    return loop, network, steps


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def train(pipe: Connection, folder: Path) -> list[bytes]:
    """Train to the end, or from the last state to it; the weights.

    Args:
        pipe: Told when a state begins to be saved, and when it is.
        folder: Of the run.
    """
    loop, network, _ = build(folder)
    loop.evaluate = lambda: {"score": float(network[0].weight.detach().sum())}
    save = training.save_state

    def told(*arguments: object) -> None:
        pipe.send("saving")
        save(*arguments)  # type: ignore[arg-type]
        pipe.send("saved")

    with mock.patch.object(training, "save_state", told):
        loop.run()
    return [weight.view(torch.uint8).numpy().tobytes() for weight in weights(network)]
