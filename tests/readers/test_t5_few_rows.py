"""Linear layers for few rows against those they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from btr.errors import UsageError
from btr.readers import t5_engine, t5_few_rows
from btr.readers.t5_decoder import Decoder
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_few_rows import Int8Linear, PackedLinear, has_int8, packable
from btr.readers.t5_network import SplitT5
from tiny_t5 import t5_tokenizer, tiny_t5

SHAPES = [(7, 5), (64, 48), (130, 768), (2048, 96)]


def linear(outputs: int, inputs: int, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(outputs)
    return nn.Linear(inputs, outputs, bias=False).to(dtype)


def needs(dtype: torch.dtype) -> None:
    if not packable(torch.zeros(2, 2, dtype=dtype)):
        pytest.skip(f"this CPU has no packed weights in {dtype}")


def needs_int8() -> None:
    if not has_int8():
        pytest.skip("this PyTorch has no FBGEMM")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [(1,), (3, 1), (2, 8)])
@torch.inference_mode()
def test_packed_weights_give_the_same(shape, rows) -> None:
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float32, 1e-5)):
        needs(dtype)
        layer = linear(*shape, dtype)
        x = torch.randn(*rows, shape[1]).to(dtype)
        expected, found = layer(x), PackedLinear(layer)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_doubles_are_not_packed() -> None:
    assert not packable(torch.zeros(2, 2, dtype=torch.float64))
    blocks = Decoder(tiny_t5(t5_tokenizer()).double()).blocks
    assert any(isinstance(module, nn.Linear) for module in blocks[0].layer[2].modules())


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_eight_bits_are_near_and_rows_alone(shape) -> None:
    needs_int8()
    layer = linear(*shape, torch.float32)
    x = torch.randn(6, shape[1]) * torch.logspace(-3, 3, 6)[:, None]
    quantised = Int8Linear(layer)
    expected, found = layer(x), quantised(x)
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < 0.03
    for i in range(len(x)):
        assert torch.equal(found[i : i + 1], quantised(x[i : i + 1]))
    assert torch.equal(quantised(torch.zeros(1, shape[1])), torch.zeros(1, shape[0]))
    assert quantised(x[None].bfloat16()).shape == (1, 6, shape[0])


@pytest.mark.parametrize("spread", [1.0, 2.1])
@torch.inference_mode()
def test_sums_of_eight_bits_do_not_overflow(monkeypatch, spread) -> None:
    """The greatest inputs and weights, as either kind of CPU has to take them."""
    needs_int8()
    if spread < t5_few_rows.weight_range():
        pytest.skip("this CPU adds eight-bit products in 16 bits")
    monkeypatch.setattr(t5_few_rows, "weight_range", lambda: spread)
    layer = nn.Linear(96, 3, bias=False)
    layer.weight.copy_(torch.tensor([[1.0], [-1.0], [0.5]]).expand(3, 96))
    found = Int8Linear(layer)(torch.stack([torch.ones(96), -torch.ones(96)]))
    expected = 96 * torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5]])
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.1)


def test_eight_bits_are_refused_where_there_are_none(monkeypatch) -> None:
    monkeypatch.setattr(t5_engine, "has_int8", lambda: False)
    engine = FidEngine(SplitT5(tiny_t5(t5_tokenizer()), 0), scale="rms16", query_budget=8)
    with pytest.raises(UsageError, match="FBGEMM"):
        engine.stepper(int8=True)
