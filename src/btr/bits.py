"""Signs as bits: packing, unpacking, Hamming distances. The only module that knows bit order.

A dimension is bit 1 when it is > 0 and bit 0 otherwise, so 0 counts as -1 (the paper's rule).
Dimension ``8 j + i`` is bit ``7 - i`` of byte ``j`` (most significant first), which is what
``numpy.packbits`` and ``numpy.unpackbits`` do with no arguments.

``d`` is the width of a state, ``b = d / 8`` its bytes, ``...`` any leading shape.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BYTE_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(bool)
"""``[256, 8]``: which of its eight dimensions a byte says are positive."""

_HAMMING_ROWS, _HAMMING_COLUMNS = 64, 1024
"""A block of pairs whose temporaries (0.6 MB) stay in the second-level cache."""


class ShapeError(ValueError):
    """An array's shape or element type is not what the function works on."""


def pack_signs(x: Tensor) -> Tensor:
    """Pack the signs of token vectors into bytes, eight dimensions a byte.

    ``unpack_signs(pack_signs(x))`` is ``sign(x)`` with zero counted as -1. The magnitude is lost.

    Args:
        x: ``[..., d]``, any real dtype, any device; ``d`` is a multiple of 8 and any other length
            may be 0. Not modified.

    Returns:
        ``[..., d / 8]`` uint8, contiguous, on the device of ``x``.

    Raises:
        ShapeError: ``x`` has no dimensions, or ``d`` is not a multiple of 8.
        ValueError: ``x`` holds a NaN, whose sign has no meaning here.

    Example:
        >>> pack_signs(torch.tensor([[0.5, -0.1, 0.0, -2.0, 1.0, 1.0, -1.0, 3.0]]))
        tensor([[141]], dtype=torch.uint8)
    """
    if x.ndim == 0 or x.shape[-1] % 8:
        raise ShapeError(f"signs to pack must be [..., d] with d % 8 == 0, not {list(x.shape)}")
    if x.numel() and torch.isnan(x.amax()):  # a maximum is NaN if anything is
        raise ValueError("signs to pack hold a NaN")
    positive = x > 0
    if x.device.type == "cpu":  # 0.2 ms for 3000 x 384, the sum below 2 ms
        return torch.from_numpy(np.packbits(positive.numpy(), axis=-1))
    return _pack_by_sum(positive)


def unpack_signs(
    packed: Tensor | NDArray[np.uint8],
    dtype: torch.dtype = torch.float32,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Unpack bytes to ``scale * sign + offset``, plain signs (-1, +1) without the two.

    The scaling costs no pass over the result: it is in the table that bytes are looked up in. The
    result is bit for bit ``signs * scale.to(dtype) + offset.to(dtype)``. No gradient flows.

    Args:
        packed: ``[..., b]`` uint8; a numpy array (it may be read-only) or a tensor on any device.
        dtype: A floating dtype of the result.
        scale: ``[8 b]`` factor of each dimension, on the device of ``packed``; None for 1.
        offset: ``[8 b]`` summand of each dimension, on the device of ``packed``; None for 0.

    Returns:
        ``[..., 8 b]`` of ``dtype``, contiguous, on the device of ``packed``, sharing no memory.

    Raises:
        ShapeError: ``packed`` is not uint8 or has no dimensions, or ``scale`` or ``offset`` is not
            ``[8 b]``.
        ValueError: ``dtype`` is not a floating one.
    """
    if packed.dtype not in (np.uint8, torch.uint8) or packed.ndim == 0:
        raise ShapeError(f"signs to unpack must be uint8 [..., b], not {_shape_of(packed)}")
    if not dtype.is_floating_point:
        raise ValueError(f"signs unpack to a floating dtype, not {dtype}")
    width = 8 * packed.shape[-1]
    for name, vector in (("scale", scale), ("offset", offset)):
        if vector is not None and vector.shape != (width,):
            raise ShapeError(f"{name} must be [{width}], not {_shape_of(vector)}")
    table = None if scale is None and offset is None else _table(width, dtype, scale, offset)
    if isinstance(packed, np.ndarray) or packed.device.type == "cpu":
        codes = packed if isinstance(packed, np.ndarray) else packed.numpy()
        return _take(codes, dtype, table)
    return _gather(packed, dtype, table)


def put_levels(
    states: Tensor,
    places: NDArray[np.int64],
    levels: NDArray[np.int8],
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> None:
    """Write what is known of some tokens' signs in their place, in :func:`unpack_signs`' terms.

    Args:
        states: ``[t, d]`` from :func:`unpack_signs`, changed.
        places: ``[n]`` tokens.
        levels: ``[n, d]``, from -127 for a sure -1 to 127 for a sure +1.
        scale: As given to :func:`unpack_signs`.
        offset: As given to :func:`unpack_signs`.
    """
    values = torch.from_numpy(levels).to(states.device, states.dtype)
    values *= 1 / 127 if scale is None else (scale / 127).to(states.dtype)
    if offset is not None:
        values += offset.to(states.dtype)
    states[torch.from_numpy(places).to(states.device)] = values


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Hamming distances of all pairs of packed rows: the number of dimensions that differ.

    Beyond the result it needs under 1 MB and one copy of the two inputs. About 7 ns a pair at 48
    bytes (one core, AVX-512 machine), as fast as a float32 matrix product of the signs.

    Args:
        a: ``[n, b]`` uint8.
        b: ``[m, b]`` uint8.

    Returns:
        ``[n, m]`` int32; 0 .. ``8 b``.

    Raises:
        ShapeError: An input is not 2-D uint8, or their row lengths differ.
    """
    for side in (a, b):
        if side.dtype != np.uint8 or side.ndim != 2 or side.shape[1] != a.shape[1]:
            raise ShapeError(
                f"packed rows must be uint8 [n, b] of one b, not {_shape_of(a)}, {_shape_of(b)}"
            )
    words_a, words_b = _as_words(a), np.ascontiguousarray(_as_words(b).T)
    distances = np.zeros((len(a), len(b)), dtype=np.int32)
    for i in range(0, len(a), _HAMMING_ROWS):
        for j in range(0, len(b), _HAMMING_COLUMNS):
            rows, columns = slice(i, i + _HAMMING_ROWS), slice(j, j + _HAMMING_COLUMNS)
            block = distances[rows, columns]
            for k in range(len(words_b)):
                block += np.bitwise_count(words_a[rows, k, None] ^ words_b[k, None, columns])
    return distances


@cache
def _sign_table(dtype: torch.dtype) -> Tensor:
    """``[256, 8]``: the eight signs of every byte."""
    return torch.where(torch.from_numpy(_BYTE_SIGNS), 1.0, -1.0).to(dtype)


def _table(width: int, dtype: torch.dtype, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """``[b * 256, 8]``: what byte ``j`` of a row stands for, at ``256 j`` plus its value."""
    device = scale.device if scale is not None else offset.device if offset is not None else None
    # A dimension has two values only; computed in dtype, they round as the plain formula does.
    high = torch.ones(width, dtype=dtype, device=device) if scale is None else scale.to(dtype)
    low = -high
    if offset is not None:
        high, low = high + offset.to(dtype), low + offset.to(dtype)
    positive = torch.from_numpy(_BYTE_SIGNS).to(high.device)
    table = torch.where(positive, high.detach().view(-1, 1, 8), low.detach().view(-1, 1, 8))
    return table.view(-1, 8)


def _take(codes: NDArray[np.uint8], dtype: torch.dtype, table: Tensor | None) -> Tensor:
    """Look bytes up as opaque records of eight elements: one 16- or 32-byte move a byte.

    Milliseconds of CPU time for 3000 x 48 bytes, one AVX-512 core, bf16 / fp32 (memcpy of the
    result: 0.16 / 0.32): take 0.14 / 0.24, ``index_select`` of the same table 0.24 / 0.27,
    ``F.embedding`` 0.27 / 0.30, ``unpackbits`` then ``2 x - 1`` 0.82 / 0.63, shift and mask
    1.6 / 1.4. ``mode="clip"`` skips the bounds check, which no byte can fail. With scale and
    offset: a table for each dimension 0.35 / 0.40, take then ``addcmul`` 0.46 / 0.42, take then
    multiply and add in place 0.72 / 0.59.
    """
    index: NDArray[np.unsignedinteger] = codes
    if table is None:
        table = _sign_table(dtype)
    else:
        # 16-bit sums while they fit: narrower indices are the cheaper half of this look-up.
        wide = np.uint16 if codes.shape[-1] <= 256 else np.uint32
        index = codes + np.arange(0, 256 * codes.shape[-1], 256, dtype=wide)
    records = table.view(torch.uint8).numpy().view(f"V{8 * dtype.itemsize}")[:, 0]
    if not index.size:  # an empty table has no record to take, even for no bytes
        return torch.empty((*codes.shape[:-1], 8 * codes.shape[-1]), dtype=dtype)
    return torch.from_numpy(records.take(index, mode="clip").view(np.uint8)).view(dtype)


def _pack_by_sum(positive: Tensor) -> Tensor:
    """``numpy.packbits`` along the last dimension, for any device."""
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=positive.device)
    bits = positive.reshape(*positive.shape[:-1], positive.shape[-1] // 8, 8)
    packed: Tensor = (bits * weights).sum(-1, dtype=torch.uint8)
    return packed


def _gather(packed: Tensor, dtype: torch.dtype, table: Tensor | None) -> Tensor:
    """:func:`_take` for any device."""
    index = packed.int()
    if table is None:
        table = _sign_table(dtype).to(packed.device)
    else:
        index = index + 256 * torch.arange(packed.shape[-1], dtype=torch.int32, device=index.device)
    return table[index].flatten(-2)


def _as_words(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Rows as 64-bit words; the last is filled up with zeros, which differ from nothing."""
    fill = -packed.shape[1] % 8
    if fill:
        packed = np.pad(packed, ((0, 0), (0, fill)))
    return np.ascontiguousarray(packed).view(np.uint64)


def _shape_of(array: Tensor | NDArray[np.uint8]) -> str:
    return f"{array.dtype} {list(array.shape)}"
