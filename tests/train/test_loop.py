"""The loop: killed and resumed equals not killed, bit for bit; bad steps stop it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stub_training import SETTINGS, KilledError, build, weights
from torch import nn

from btr.errors import IncompatibleError, InputError
from btr.train.loop import LoopSettings


@pytest.mark.parametrize("die_at", range(1, 21))
def test_killed_and_resumed_equals_not_killed(tmp_path: Path, die_at: int):
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    unbroken, whole, steps = build(tmp_path / "whole")
    unbroken.run()
    assert steps["n"] == 21
    loop, _, _ = build(tmp_path / "cut", die_at=die_at)
    with pytest.raises(KilledError):
        loop.run()
    loop, resumed, steps = build(tmp_path / "cut")
    loop.run()
    assert steps["n"] == 21 - die_at
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    for name, mean in unbroken.optimizer.result.items():
        assert torch.equal(mean, loop.optimizer.result[name])


def test_dev_sees_the_mean_of_the_last_weights_and_it_is_kept(tmp_path: Path):
    loop, network, steps = build(tmp_path)
    name, parameter = next(iter(network.named_parameters()))
    masters, seen, step = [], {}, loop.optimizer.step

    def noted(number: int) -> float:
        norm = step(number)
        masters.append(loop.optimizer.masters[name].detach().clone())
        return norm

    def look() -> dict[str, float]:
        seen[steps["n"]] = parameter.detach().clone()
        return {"score": float(steps["n"])}

    loop.optimizer.step, loop.evaluate = noted, look
    loop.run()
    mean = torch.stack(masters[-8:]).mean(0)
    torch.testing.assert_close(loop.optimizer.result[name], mean)
    assert not torch.allclose(mean, masters[-1])
    assert torch.equal(seen[7], masters[6].bfloat16())
    assert torch.equal(seen[21], loop.optimizer.result[name].bfloat16())
    assert torch.equal(parameter, masters[-1].bfloat16())


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
    with pytest.raises(IncompatibleError, match=r"another lr.*expected 0\.05, found 0\.01"):
        loop.run()
    before = (tmp_path / "settings.json").read_text()
    loop, _, _ = build(tmp_path)
    loop.recorded["data"]["sources"] = ["b"]
    with pytest.raises(IncompatibleError, match=r'data sources.*expected \["a"\], found \["b"\]'):
        loop.run()
    assert (tmp_path / "settings.json").read_text() == before
    # A state that an older btr wrote, which knew fewer settings.
    state = tmp_path / "state" / "state.json"
    record = json.loads(state.read_text())
    del record["settings"]["dropout"]
    state.write_text(json.dumps(record))
    build(tmp_path)[0].run()


class Broken(nn.Module):
    """A loss that is not finite, or whose gradient is not."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, batch: int) -> dict[str, torch.Tensor]:
        y = self.network(torch.zeros(1, 4).bfloat16()).float()
        return {"mse": (y * 0).sqrt().sum() if self.factor == 0 else y.sum() * self.factor}


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0])
def test_losses_that_are_not_finite_stop_the_run_and_change_nothing(tmp_path: Path, factor: float):
    loop, network, _ = build(tmp_path)
    before = weights(network)
    loop.prepared = Broken(network, factor)
    with pytest.raises(InputError, match=r"not finite: 5 times up to step 5; found batch 4;"):
        loop.run()
    for a, b in zip(before, weights(network), strict=True):
        assert torch.equal(a, b)


def test_a_bad_step_is_logged_and_in_no_mean(tmp_path: Path):
    loop, network, _ = build(tmp_path, settings=replace(SETTINGS, epochs=1))

    class Sometimes(nn.Module):
        def forward(self, batch: int) -> dict[str, torch.Tensor]:
            nothing = network(torch.zeros(1, 4).bfloat16()).float().sum() * 0
            return {"mse": nothing + (float("nan") if batch in (2, 5) else batch)}

    loop.prepared = Sometimes()
    loop.run()
    *bad, report, _ = lines(tmp_path)
    assert [(line["step"], line["not_finite"]) for line in bad] == [(3, "batch 2"), (6, "batch 5")]
    assert (report["mse"], report["left_out"]) == (pytest.approx(14 / 5), 2)


def test_accumulated_batches_make_one_step(tmp_path: Path):
    (tmp_path / "a").mkdir()
    loop, _, steps = build(tmp_path / "a", settings=replace(SETTINGS, accumulate=3))
    assert loop.total == 9
    loop.run()
    assert steps["n"] == 21


def test_it_stops_after_its_steps_or_when_dev_no_longer_gets_better(tmp_path: Path):
    for name in ("steps", "patience"):
        (tmp_path / name).mkdir()
    settings = replace(SETTINGS, steps=10, evaluate_every=4)
    loop, _, steps = build(tmp_path / "steps", settings=settings)
    loop.run()
    assert steps["n"] == 10
    looks = [line for line in lines(tmp_path / "steps") if "dev" in line]
    assert [line["step"] for line in looks] == [4, 8, 10]
    settings = replace(SETTINGS, patience=1)
    loop, _, steps = build(tmp_path / "patience", settings=settings)
    loop.evaluate = lambda: {"score": -float(steps["n"])}
    assert loop.run() == {"score": -7.0}
    assert steps["n"] == 14


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
