"""What is stored of a passage's tokens in the T5 family, and back: ``docs/format.md`` has the rows.

``N`` tokens, ``d`` width. A 1-bit row is ``d / 8`` bytes of signs and the token's scale, the root
``sqrt(mean(h^2) + eps)``: the variance itself exceeds float16 in large T5s, its root does not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btr.binarize import PreNormBinarizer
from btr.bits import pack_signs, put_levels, unpack_signs
from btr.readers.t5_network import Restored
from btr.store.format import Guesses

_STEPS = 12
"""Steps of the log scale an octave: 6 % apart, so a scale is at most 3 % off."""

_LOWEST = -6 * _STEPS
"""Step of code 0: 2^-6; code 255 is 2^15.25."""


def to_rows(hidden: Tensor, binarizer: PreNormBinarizer | None, scale: str) -> NDArray[np.uint8]:
    """States after the lower layers to stored rows.

    Args:
        hidden: ``[N, d]`` residual stream.
        binarizer: None for continuous states, stored as float16.
        scale: "rms16" or "rms8".

    Returns:
        ``[N, 2 d]``, or ``[N, d / 8 + 2]`` or ``[N, d / 8 + 1]`` uint8. Continuous states beyond
        float16 are infinite in there; whoever stores rows must look for them.
    """
    if binarizer is None:
        return hidden.to(torch.float16).cpu().numpy().view(np.uint8)
    signs, variance = binarizer.encode(hidden)
    rms = binarizer.rms(variance).cpu().numpy()
    if scale == "rms16":
        scales = rms.astype("<f2")[:, None].view(np.uint8)
    else:
        codes = np.rint(_STEPS * np.log2(rms)) - _LOWEST
        scales = np.clip(codes, 0, 255).astype(np.uint8)[:, None]
    return np.concatenate([pack_signs(signs).cpu().numpy(), scales], axis=1)


def settled(hidden: Tensor) -> Tensor:
    """Continuous states ``[N, d]`` as their rows would give them back, bit for bit.

    Those beyond float16, of which there are no rows, stay as they are.
    """
    halves = hidden.to(torch.float16).to(hidden.dtype)
    return torch.where(halves.isinf(), hidden, halves)


def from_rows(
    rows: NDArray[np.uint8],
    width: int,
    binarizer: PreNormBinarizer | None,
    scale: str,
    dtype: torch.dtype,
    device: torch.device,
    guesses: Guesses | None = None,
) -> Restored:
    """Stored rows to states for the joint layers, ``[N, d]`` of ``dtype``.

    Args:
        rows: As :func:`to_rows` made them; may be read-only.
        width: ``d``.
        binarizer: None for continuous states.
        scale: "rms16" or "rms8".
        dtype: Of the result.
        device: Of the result.
        guesses: Of the rows of a compressed store, those that are not in it.
    """
    if binarizer is None:
        return Restored(torch.from_numpy(rows.view(np.float16)).to(device, dtype))
    bits, scales = rows[:, : width // 8], np.ascontiguousarray(rows[:, width // 8 :])
    if scale == "rms16":
        rms = scales.view("<f2").astype(np.float32)
    else:
        rms = np.exp2((scales.astype(np.float32) + _LOWEST) / _STEPS)
    packed = bits if device.type == "cpu" else torch.from_numpy(bits.copy()).to(device)
    residual = unpack_signs(packed, dtype, scale=binarizer.inverse_weight)
    normed = unpack_signs(packed, dtype)
    if guesses is not None:
        put_levels(residual, guesses.places, guesses.levels, scale=binarizer.inverse_weight)
        put_levels(normed, guesses.places, guesses.levels)
    residual *= torch.from_numpy(rms).to(device, dtype)
    return Restored(residual, normed)
