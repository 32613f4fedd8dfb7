"""What is stored of a passage's tokens in the T5 family, and back: ``docs/format.md`` has the rows.

``N`` tokens, ``d`` width. A 1-bit row is ``d / 8`` bytes of signs and the token's scale, the root
``sqrt(mean(h^2) + eps)``: the variance itself exceeds float16 in large T5s, its root does not.
Where words make expect a part of it, the token's id follows.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btr.bits import pack_signs, put_levels, unpack_signs
from btr.readers.id_rows import ids_of
from btr.readers.t5_network import Restored, SplitT5
from btr.store.format import SCALE_BYTES, Guesses, packed_ids

_STEPS = 12
"""Steps of the log scale an octave: 6 % apart, so a scale is at most 3 % off."""

_LOWEST = -6 * _STEPS
"""Step of code 0: 2^-6; code 255 is 2^15.25."""


def to_rows(network: SplitT5, hidden: Tensor, ids: Tensor, scale: str) -> NDArray[np.uint8]:
    """States after the lower layers to stored rows.

    Args:
        network: Whose lower layers; continuous states are stored as float16.
        hidden: ``[N, d]`` residual stream.
        ids: ``[N]`` int64, the tokens.
        scale: "rms16" or "rms8".

    Returns:
        ``[N, 2 d]``, or ``[N, d / 8 + 2]`` or ``[N, d / 8 + 1]`` uint8, two bytes more where words
        make expect a part. Continuous states beyond float16 are infinite in there; whoever stores
        rows must look for them.
    """
    binarizer = network.binarizer
    if binarizer is None:
        return hidden.to(torch.float16).cpu().numpy().view(np.uint8)
    expected = None
    if binarizer.words is not None:
        expected = binarizer.words.expected_of(ids, network.model.shared)
    signs, variance = binarizer.encode(hidden, expected)
    rms = binarizer.rms(variance).cpu().numpy()
    if scale == "rms16":
        scales = rms.astype("<f2")[:, None].view(np.uint8)
    else:
        codes = np.rint(_STEPS * np.log2(rms)) - _LOWEST
        scales = np.clip(codes, 0, 255).astype(np.uint8)[:, None]
    parts = [pack_signs(signs).cpu().numpy(), scales]
    if binarizer.words is not None:
        parts.append(packed_ids(ids.cpu().numpy()))
    return np.concatenate(parts, axis=1)


def settled(hidden: Tensor) -> Tensor:
    """Continuous states ``[N, d]`` as their rows would give them back, bit for bit.

    Those beyond float16, of which there are no rows, stay as they are.
    """
    halves = hidden.to(torch.float16).to(hidden.dtype)
    return torch.where(halves.isinf(), hidden, halves)


def from_rows(
    network: SplitT5, rows: NDArray[np.uint8], scale: str, guesses: Guesses | None = None
) -> Restored:
    """Stored rows to states for the joint layers, ``[N, d]`` of the network's dtype.

    Args:
        network: Reads them.
        rows: As :func:`to_rows` made them; may be read-only.
        scale: "rms16" or "rms8".
        guesses: Of the rows of a compressed store, those that are not in it.

    Raises:
        CorruptError: A token's id is not of the vocabulary.
    """
    shared, binarizer = network.model.shared, network.binarizer
    (_, width), dtype, device = shared.weight.shape, shared.weight.dtype, shared.weight.device
    if binarizer is None:
        return Restored(torch.from_numpy(rows.view(np.float16)).to(device, dtype))
    bits, behind = rows[:, : width // 8], width // 8 + SCALE_BYTES[scale]
    scales = np.ascontiguousarray(rows[:, width // 8 : behind])
    if scale == "rms16":
        rms = torch.from_numpy(scales.view("<f2").astype(np.float32))
    else:
        rms = torch.from_numpy(np.exp2((scales.astype(np.float32) + _LOWEST) / _STEPS))
    packed = bits if device.type == "cpu" else torch.from_numpy(bits.copy()).to(device)
    normed = unpack_signs(packed, dtype)
    if guesses is not None:
        put_levels(normed, guesses.places, guesses.levels)
    if binarizer.words is None:
        # From a table of its own, which costs no pass over the result.
        residual = unpack_signs(packed, dtype, scale=binarizer.inverse_weight)
        if guesses is not None:
            put_levels(residual, guesses.places, guesses.levels, scale=binarizer.inverse_weight)
    else:
        ids = ids_of(rows, len(shared.weight))
        expected = binarizer.words.expected_of(ids.to(device), shared)
        normed = binarizer.words.restore(normed, expected)
        residual = normed * binarizer.inverse_weight.to(dtype)
    residual *= rms.to(device, dtype)
    return Restored(residual, normed)
