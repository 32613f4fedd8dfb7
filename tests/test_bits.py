"""Packing, unpacking and Hamming distances against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from btr.binarize import hard_sign
from btr.bits import (
    ShapeError,
    _gather,
    _pack_by_sum,
    _table,
    _take,
    hamming,
    pack_signs,
    put_levels,
    unpack_signs,
)

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def states(draw: st.DrawFn) -> Tensor:
    """``[..., d]`` of any floating dtype, with zeros of both signs, tiny and infinite values."""
    shape = draw(st.lists(st.integers(0, 5), max_size=2))
    width = 8 * draw(st.integers(0, 5))
    values = draw(
        st.lists(
            st.sampled_from([0.0, -0.0, 1e-7, -1e-7, 0.5, -2.0, 3e4, -3e4, np.inf, -np.inf]),
            min_size=int(np.prod([*shape, width])),
            max_size=int(np.prod([*shape, width])),
        )
    )
    return torch.tensor(values, dtype=draw(st.sampled_from(FLOATS))).reshape(*shape, width)


@st.composite
def row_pairs(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, m, width = draw(st.integers(0, 70)), draw(st.integers(0, 70)), draw(st.integers(0, 20))
    return (
        rng.integers(0, 256, (n, width), dtype=np.uint8),
        rng.integers(0, 256, (m, width), dtype=np.uint8),
    )


@given(states(), st.sampled_from(FLOATS))
def test_unpacking_gives_the_signs_with_zero_as_minus_one(x: Tensor, dtype: torch.dtype) -> None:
    packed = pack_signs(x)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*x.shape[:-1], x.shape[-1] // 8)
    unpacked = unpack_signs(packed, dtype)
    assert unpacked.dtype == dtype
    assert unpacked.is_contiguous()
    assert torch.equal(unpacked, torch.where(x > 0, 1.0, -1.0).to(dtype))
    assert torch.equal(pack_signs(unpacked), packed)


@given(states())
def test_packing_and_the_binarizer_agree_on_every_sign(x: Tensor) -> None:
    assert torch.equal(unpack_signs(pack_signs(x), x.dtype), hard_sign(x))


@given(states())
def test_bits_are_most_significant_first(x: Tensor) -> None:
    bits = (x > 0).reshape(*x.shape[:-1], x.shape[-1] // 8, 8).int()
    expected = sum(bits[..., i] << (7 - i) for i in range(8))
    assert torch.equal(pack_signs(x).int(), expected)
    assert torch.equal(_pack_by_sum(x > 0).int(), expected)  # what other devices use


def test_a_byte_by_hand() -> None:
    x = torch.tensor([[0.5, -0.1, 0.0, -2.0, 1.0, 1.0, -1.0, 3.0]])
    assert pack_signs(x).tolist() == [[0b10001101]]
    assert unpack_signs(torch.tensor([[141]], dtype=torch.uint8)).tolist() == [
        [1, -1, -1, -1, 1, 1, -1, 1]
    ]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [8, 384, 2048, 2056])  # 2048 is the last with 16-bit indices
@pytest.mark.parametrize(("scaled", "shifted"), [(True, True), (True, False), (False, True)])
def test_fused_scale_and_offset_round_as_the_plain_formula(
    dtype: torch.dtype, width: int, scaled: bool, shifted: bool
) -> None:
    generator = torch.Generator().manual_seed(width)
    packed = torch.randint(0, 256, (7, width // 8), dtype=torch.uint8, generator=generator)
    scale = torch.randn(width, generator=generator) if scaled else None
    offset = torch.randn(width, generator=generator) if shifted else None
    expected = unpack_signs(packed, dtype)
    if scale is not None:
        expected = expected * scale.to(dtype)
    if offset is not None:
        expected = expected + offset.to(dtype)
    unpacked = unpack_signs(packed, dtype, scale=scale, offset=offset)
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("fused", [False, True])
def test_the_look_up_for_other_devices_gives_the_same(dtype: torch.dtype, fused: bool) -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(32, 8)
    table = _table(64, dtype, torch.linspace(-2, 3, 64), torch.ones(64)) if fused else None
    assert torch.equal(_gather(packed, dtype, table), _take(packed.numpy(), dtype, table))


def test_unpacking_takes_read_only_and_strided_arrays() -> None:
    stored = np.frombuffer(bytes(range(64)), dtype=np.uint8).reshape(8, 8)
    assert not stored.flags.writeable
    whole = unpack_signs(stored)
    assert torch.equal(whole, unpack_signs(torch.arange(64, dtype=torch.uint8).view(8, 8)))
    assert torch.equal(unpack_signs(stored[::2]), whole[::2])
    assert torch.equal(unpack_signs(torch.from_numpy(stored.copy()).T), unpack_signs(stored.T))


def test_the_result_is_the_callers_own() -> None:
    packed = torch.full((2, 1), 255, dtype=torch.uint8)
    unpack_signs(packed).zero_()
    assert torch.equal(unpack_signs(packed), torch.ones(2, 8))


def test_scale_may_be_a_trained_parameter() -> None:
    scale = torch.nn.Parameter(torch.full((8,), 0.5))
    unpacked = unpack_signs(torch.full((1, 1), 255, dtype=torch.uint8), scale=scale)
    assert torch.equal(unpacked, torch.full((1, 8), 0.5))
    assert not unpacked.requires_grad


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_has_no_sign(dtype: torch.dtype) -> None:
    x = torch.ones(3, 8, dtype=dtype)
    x[1, 5] = torch.nan
    with pytest.raises(ValueError, match="hold a NaN"):
        pack_signs(x)


def test_wrong_shapes_and_dtypes_are_named() -> None:
    with pytest.raises(ShapeError, match=r"d % 8 == 0, not \[3, 12\]"):
        pack_signs(torch.ones(3, 12))
    with pytest.raises(ShapeError, match=r"not \[\]"):
        pack_signs(torch.tensor(1.0))
    with pytest.raises(ShapeError, match=r"must be uint8 .* not torch.int32 \[3, 4\]"):
        unpack_signs(torch.ones(3, 4, dtype=torch.int32))
    with pytest.raises(ShapeError, match="not int8"):
        unpack_signs(np.ones((3, 4), dtype=np.int8))  # type: ignore[arg-type]
    packed = torch.ones(3, 4, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"scale must be \[32\], not torch.float32 \[4\]"):
        unpack_signs(packed, scale=torch.ones(4))
    with pytest.raises(ShapeError, match=r"offset must be \[32\]"):
        unpack_signs(packed, offset=torch.ones(1, 32))
    with pytest.raises(ValueError, match=r"floating dtype, not torch\.int8"):
        unpack_signs(packed, torch.int8)


@given(row_pairs())
def test_hamming_counts_the_dimensions_that_differ(
    rows: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    a, b = rows
    bits_a, bits_b = np.unpackbits(a, axis=1), np.unpackbits(b, axis=1)
    distances = hamming(a, b)
    assert distances.dtype == np.int32
    assert np.array_equal(distances, (bits_a[:, None] != bits_b[None]).sum(-1))


def test_hamming_over_several_blocks_and_strided_rows() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (140, 13), dtype=np.uint8)[::2]
    b = rng.integers(0, 256, (2100, 13), dtype=np.uint8)
    expected = np.bitwise_count(a[:, None] ^ b[None]).sum(-1, dtype=np.int32)
    assert np.array_equal(hamming(a, b), expected)


def test_hamming_counts_more_than_a_byte_can_hold() -> None:
    ones = np.full((1, 200), 255, dtype=np.uint8)
    assert hamming(ones, ~ones).tolist() == [[1600]]


def test_hamming_refuses_rows_that_do_not_fit() -> None:
    rows = np.zeros((2, 4), dtype=np.uint8)
    with pytest.raises(ShapeError, match=r"uint8 \[2, 4\], uint8 \[2, 5\]"):
        hamming(rows, np.zeros((2, 5), dtype=np.uint8))
    with pytest.raises(ShapeError, match="not uint8"):
        hamming(rows[0], rows)
    with pytest.raises(ShapeError, match="int8"):
        hamming(rows, rows.astype(np.int8))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("line", [False, True])
def test_levels_are_signs_that_one_is_more_or_less_sure_of(dtype: torch.dtype, line: bool) -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 256, (6, 2), np.uint8)
    signs = np.unpackbits(bits, axis=1).astype(np.int8) * 2 - 1
    how = {}
    if line:
        how = {"scale": torch.linspace(0.5, 2, 16), "offset": torch.linspace(-1, 1, 16)}
    places = np.array([1, 2, 5])
    states = unpack_signs(~bits, dtype, **how)
    put_levels(states, places, (127 * signs[places]).astype(np.int8), **how)
    wanted = unpack_signs(~bits, dtype, **how)
    wanted[places] = unpack_signs(bits, dtype, **how)[places]
    torch.testing.assert_close(states, wanted, rtol=1e-2, atol=1e-2)
    put_levels(states, places, np.zeros((3, 16), np.int8), **how)
    middle = how["offset"] if line else torch.zeros(16)
    assert torch.equal(states[places], middle.to(dtype).expand(3, 16))
