"""The calibrated rule and the naive ones: what each makes of a state, and that each learns."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from btr.binarize import PreNormBinarizer, WordResidual
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.readers.t5_network import SplitT5
from btr.train.fid import FidLoss
from btr.train.fid_examples import FidData, FidExample, collate
from btr.train.loop import LoopSettings
from btr.train.rules import RULES, STEEPEST, CalibratedRule, Rule, naive_rule
from btr.train.stage import StageSettings
from tiny_t5 import t5_tokenizer, tiny_t5

WIDTH = 32
EPSILON = 1e-6


def rules(weight: torch.Tensor) -> dict[Rule, nn.Module]:
    made: dict[Rule, nn.Module] = {}
    for rule in RULES:
        words = WordResidual(WIDTH) if rule == "words" else None
        calibrated = CalibratedRule(PreNormBinarizer(weight, EPSILON, words=words))
        made[rule] = (naive_rule(rule, WIDTH) or calibrated).eval()
    return made


def states() -> torch.Tensor:
    """With a mean that is not 0, outliers, and sizes that differ from token to token."""
    torch.manual_seed(0)
    h = (torch.randn(6, WIDTH) + 0.5) * torch.logspace(-1, 2, 6)[:, None]
    h[:, 3] *= 50
    return h


def test_the_rules_are_their_definitions() -> None:
    h = states()
    weight = torch.linspace(-1, 2, WIDTH)
    embeddings = torch.randn_like(h)
    found = rules(weight)
    made = {name: rule(h, embeddings) for name, rule in found.items()}
    r = 1 / torch.sqrt(h.square().mean(-1, keepdim=True) + EPSILON)
    words = found["words"].binarizer.words
    size = embeddings.square().mean(-1, keepdim=True).sqrt()
    mean = (embeddings / size) @ words.mean.weight.T + words.mean.bias
    expected = {
        "calibrated": weight * h,
        "raw": h,
        "norm": h - h.mean(-1, keepdim=True),
        "tanh": h,
        "words": weight * h * r - mean,
    }
    for name, before in expected.items():
        signs = torch.where(before > 0, 1.0, -1.0)
        assert torch.equal(made[name].signs, signs), name
        if name not in ("calibrated", "words"):
            # The size of a state is lost, and the next norm is not passed over.
            assert torch.equal(made[name].residual, signs)
            assert made[name].normed is None
    calibrated = made["calibrated"]
    assert torch.equal(calibrated.normed, calibrated.signs)
    large = weight.abs() > 0.1  # the others are guarded
    torch.testing.assert_close(
        calibrated.residual[:, large], (calibrated.signs / (weight * r))[:, large]
    )
    # Signs of what words leave unsaid, and with what they say at the same scale.
    y = mean + made["words"].signs @ words.bits.weight.T
    torch.testing.assert_close(made["words"].normed, y)
    torch.testing.assert_close(
        made["words"].residual[:, large], (y / (weight * r))[:, large], rtol=1e-4, atol=1e-4
    )


def test_the_rules_make_different_bits() -> None:
    made = {
        name: rule(states(), states()).signs
        for name, rule in rules(torch.linspace(-1, 2, WIDTH)).items()
    }
    for a, b in (("calibrated", "raw"), ("calibrated", "norm"), ("raw", "norm")):
        assert 0.05 < (made[a] != made[b]).float().mean() < 0.95
    # The tanh is annealed to the very sign that is taken at once by the raw rule.
    assert torch.equal(made["tanh"], made["raw"])


def test_the_tanh_gets_steeper_until_it_is_nearly_a_sign() -> None:
    rule, h = naive_rule("tanh", WIDTH).train(), states()
    gaps = []
    for progress in (0.0, 0.5, 1.0):
        rule.progress = progress
        signs = rule(h, h).signs
        torch.testing.assert_close(signs, torch.tanh(STEEPEST**progress * h))
        gaps.append((signs - torch.where(h > 0, 1.0, -1.0)).abs().mean())
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns_down_to_the_layers_below_it(name: Rule) -> None:
    torch.manual_seed(0)
    data = FidData(
        questions=[torch.randint(5, 40, (n,)).int().numpy() for n in (5, 3)],
        origins=["one", "two"],
        passages=[torch.randint(5, 40, (n,)).int().numpy() for n in (12, 7, 9)],
        answers=[torch.randint(5, 40, (n,)).int().numpy() for n in (3, 2)],
        examples=[FidExample(0, (0, 1), (0,)), FidExample(1, (2,), (1,))],
    )
    words = WordResidual(WIDTH) if name == "words" else None
    network = SplitT5(tiny_t5(t5_tokenizer(), wild=False), 2, binarized=True, words=words)
    network.requires_grad_(True)
    before = network.blocks[0].layer[1].DenseReluDense.wo.weight.clone()
    settings = StageSettings("binarize", LoopSettings(1, 1e-3), recovery_weight=0.1, rule=name)
    config = T5ReaderConfig(query_budget=16, passage_budget=60, answer_budget=8)
    loss = FidLoss(
        network, partial(collate, data), settings, config, rule=naive_rule(name, WIDTH)
    ).train()  # fmt: skip
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(loss.parameters(), 5e-3)
    tasks, recovered = [], []
    for step in range(30):
        loss.at(step / 30)
        parts = loss(data.examples)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step()
        tasks.append(parts["task"].item())
        recovered.append(parts["recovery"].item())
    assert tasks[-1] < 0.3 * tasks[0]
    assert recovered[-1] < recovered[0]
    assert not torch.equal(before, network.blocks[0].layer[1].DenseReluDense.wo.weight)
