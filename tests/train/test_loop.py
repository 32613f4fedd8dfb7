"""The loop: killed and resumed equals not killed, bit for bit; bad steps stop it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from btr.errors import IncompatibleError
from btr.train.loop import Loop, LoopSettings
from btr.train.optimizer import MasterAdamW

SETTINGS = LoopSettings(epochs=3, lr=0.05, warmup=2, state_minutes=0.0)


class KilledError(Exception):
    """Stands for a kill: nothing of the loop runs after it."""


def build(folder: Path, *, die_at: int | None = None, settings: LoopSettings = SETTINGS):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1)).bfloat16()
    steps = {"n": 0}
    kept: list[float] = []

    def loss(batch: int) -> dict[str, torch.Tensor]:
        if steps["n"] == die_at:
            raise KilledError
        steps["n"] += 1
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(batch))
        y = network(x.bfloat16()).float()
        return {"mse": (y - x.sum(1, keepdim=True)).square().mean()}

    loop: Loop[int] = Loop(
        settings,
        plan=lambda epoch: [100 * epoch + i for i in range(7)],
        loss=loss,
        make_optimizer=lambda total: MasterAdamW(
            network.named_parameters(), lr=settings.lr, weight_decay=0.01, warmup=2, total=total
        ),
        evaluate=lambda: {"score": float(steps["n"])},
        keep=lambda: kept.append(1.0),
        folder=folder,
    )
    return loop, network, steps


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


@pytest.mark.parametrize("die_at", [1, 6, 7, 13, 20])
def test_killed_and_resumed_equals_not_killed(tmp_path: Path, die_at: int):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    loop, whole, steps = build(tmp_path / "whole")
    loop.run()
    assert steps["n"] == 21
    loop, _, _ = build(tmp_path / "cut", die_at=die_at)
    with pytest.raises(KilledError):
        loop.run()
    loop, resumed, steps = build(tmp_path / "cut")
    loop.run()
    assert steps["n"] == 21 - die_at
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path):
    loop, _, _ = build(tmp_path, die_at=10)
    with pytest.raises(KilledError):
        loop.run()
    (tmp_path / "state").rename(tmp_path / "state.old")
    loop, _, steps = build(tmp_path)
    loop.run()
    assert steps["n"] == 11


def test_other_settings_do_not_resume(tmp_path: Path):
    loop, _, _ = build(tmp_path, die_at=10)
    with pytest.raises(KilledError):
        loop.run()
    loop, _, _ = build(tmp_path, settings=LoopSettings(epochs=3, lr=0.01, state_minutes=0.0))
    with pytest.raises(IncompatibleError, match="other settings"):
        loop.run()


def test_losses_that_are_not_finite_stop_the_run_and_change_nothing(tmp_path: Path):
    loop, network, _ = build(tmp_path)
    before = weights(network)
    loop.loss = lambda batch: {"mse": network(torch.zeros(1, 4).bfloat16()).sum() * torch.nan}
    with pytest.raises(FloatingPointError, match="5 times up to step 4"):
        loop.run()
    for a, b in zip(before, weights(network), strict=True):
        assert torch.equal(a, b)
