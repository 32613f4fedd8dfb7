"""Decoder weights laid out for few rows: a step of decoding on a CPU is reading its weights.

Milliseconds of all linear layers of a T5 base decoder with its head (248 MB in bf16), 1 / 8 rows,
one core of an AMD EPYC with AVX-512 bf16, weights from memory: ``nn.Linear`` 31 / 36,
:class:`PackedLinear` 18 / 21, :class:`Int8Linear` 8 / 10.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5Attention, T5Block

from btr.readers.t5_layers import cross_attention


def packable(weight: Tensor) -> bool:
    """Whether oneDNN has kernels for a weight's dtype on this CPU, so that it can be packed."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # Float64 has none; on CPUs other than x86 float32 weights can't be packed.
    return weight.dtype == torch.float32 and "AVX" in torch.backends.cpu.get_cpu_capability()


def has_int8() -> bool:
    """Whether this PyTorch has the kernels of :class:`Int8Linear`: FBGEMM's, on x86."""
    there = hasattr(torch, "fbgemm_linear_int8_weight_fp32_activation")
    return there and "fbgemm" in torch.backends.quantized.supported_engines


class PackedLinear(nn.Module):
    """A linear layer without bias whose weights lie in the order in which oneDNN reads them.

    In bfloat16 the result is that of ``nn.Linear`` bit for bit.

    Args:
        linear: The layer to pack, :func:`packable`; not changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return result


class Int8Linear(nn.Module):
    """A linear layer without bias whose weights are 8-bit integers with a scale an output.

    Inputs are quantised on the fly, with a scale a row, so that a row's result does not depend on
    the rows with it. Only for few rows: over thousands of them 16-bit products are many times
    faster, so the keys and values of the passages stay in 16 bits. On CPUs without AVX-512 VNNI
    the weights take 7 of the bits (:func:`weight_range`).

    Args:
        linear: The layer to quantise; not changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scales = weight.abs().amax(1).clamp_min_(1e-12)
        self.product = Int8Product(weight / self.scales[:, None], weight_range())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]`` of the dtype of ``x``."""
        rows = x.flatten(0, -2).float()
        scales = rows.abs().amax(1, keepdim=True).clamp_min_(1e-12)
        result = self.product(rows / scales) * self.scales * scales
        return result.to(x.dtype).view(*x.shape[:-1], -1)


class Int8Product:
    """FBGEMM's product of quantised inputs and weights, both of -1 .. 1.

    It has one scale for all weights and one for all inputs, each from the smallest and greatest
    value. Two more inputs are -1 and 1 in every row, and one more output has weights of both ends
    of the range; where these meet the others, there are zeros.

    Args:
        weight: ``[out, in]`` float32.
        spread: End of the weights' range, at least 1: what 127 stands for.
    """

    def __init__(self, weight: Tensor, spread: float) -> None:
        padded = functional.pad(weight, (0, 2, 0, 1))
        padded[-1, -2:] = torch.tensor([-spread, spread])
        self.ends, self.no_bias = torch.tensor([[-1.0, 1.0]]), torch.zeros(len(padded))
        with warnings.catch_warnings():
            # Each of the three says once that a later PyTorch may not have it; :func:`has_int8`.
            warnings.simplefilter("ignore", UserWarning)
            self.weight, self.offsets, self.scale, self.zero = torch.fbgemm_linear_quantize_weight(
                padded
            )
            self.packed = torch.fbgemm_pack_quantized_matrix(self.weight)
            self(weight[:1])

    def __call__(self, rows: Tensor) -> Tensor:
        """``[n, in]`` float32 to ``[n, out]``."""
        given = torch.cat([rows, self.ends.expand(len(rows), 2)], 1)
        result: Tensor = torch.fbgemm_linear_int8_weight_fp32_activation(
            given, self.weight, self.packed, self.offsets, self.scale, self.zero, self.no_bias
        )
        return result[:, :-1]


@cache
def weight_range() -> float:
    """What 127 stands for in weights of at most 1, so that no sum of two products overflows.

    Without AVX-512 VNNI, FBGEMM adds pairs of an input's 0 .. 255 times a weight's -128 .. 127 in
    16 bits and cuts the sum at 32,767. Half of the range is then left unused: 62 * 255 * 2 is less.
    """
    ones = torch.ones(1, 64)
    whole = float(Int8Product(ones, 1.0)(ones))
    return 1.0 if abs(whole - 64) < 1 else 2.1


def for_few_rows(blocks: list[T5Block], make: Callable[[nn.Linear], nn.Module]) -> list[T5Block]:
    """Copies of decoder blocks with other linear layers, but for what projects passages' tokens.

    Those are shared; no weight is copied but into what ``make`` makes of it.

    Args:
        blocks: Not changed.
        make: :class:`PackedLinear` or :class:`Int8Linear`.
    """
    return [_copy(block, make) for block in blocks]


def _copy(block: T5Block, make: Callable[[nn.Linear], nn.Module]) -> T5Block:
    cross: T5Attention = cross_attention(block).EncDecAttention
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    # What stands for a module in the copy; all else is copied.
    instead = {id(m): m if m in (cross.k, cross.v) else make(m) for m in linears}
    return copy.deepcopy(block, cast("dict[int, Any]", instead))
