"""Fusion-in-Decoder on token ids: passages to rows, rows and questions to what a decoder reads.

The reader without its texts, so that benchmarks time what users run. ``d`` width; a row is a
token's stored bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from btr.errors import UsageError
from btr.readers.base import Merging
from btr.readers.batches import Clock, by_length, encode_by_length
from btr.readers.t5_decoder import Decoder, Memory
from btr.readers.t5_few_rows import has_int8
from btr.readers.t5_network import NO_MERGING, Restored, SplitT5
from btr.readers.t5_rows import from_rows, settled, to_rows
from btr.store.format import Guesses


class FidEngine:
    """A split T5 with its decoder.

    Args:
        network: The network, in eval mode.
        scale: How scales of 1-bit tokens are stored: "rms16" or "rms8".
        query_budget: Where passages begin; None for right after the question.
    """

    def __init__(self, network: SplitT5, *, scale: str, query_budget: int | None) -> None:
        self.network, self.scale, self.query_budget = network, scale, query_budget
        self.decoder = Decoder(network.model)
        self.device = self.decoder.device
        self.dtype: torch.dtype = network.model.shared.weight.dtype
        self.width: int = network.model.config.d_model
        self._int8: Decoder | None = None

    def stepper(self, *, int8: bool) -> Decoder:
        """What decodes tokens; the one with 8-bit weights is made when it is first asked for.

        Raises:
            UsageError: The weights are not on a CPU, or its PyTorch has no such kernels.
        """
        if not int8:
            return self.decoder
        if self._int8 is None:
            if self.device.type != "cpu" or not has_int8():
                raise UsageError("decoding in 8 bits is for x86 CPUs and PyTorch's FBGEMM",
                                 found=f"{self.device}, torch {torch.__version__}",
                                 todo="leave it off")  # fmt: skip
            self._int8 = Decoder(self.network.model, int8=True)
        return self._int8

    @torch.inference_mode()
    def encode(self, passages: Sequence[Sequence[int]]) -> list[NDArray[np.uint8]]:
        """Token ids of passages to their rows, a ``[P, row bytes]`` each; see ``to_rows``."""
        lengths = [len(ids) for ids in passages]

        def rows_of(batch: list[int]) -> NDArray[np.uint8]:
            ids = self._pack([passages[i] for i in batch])
            hidden = self.network.run_lower(ids, [lengths[i] for i in batch])
            return to_rows(self.network, hidden, ids, self.scale)

        return encode_by_length(lengths, rows_of)

    @torch.inference_mode()
    def embed(self, passages: Sequence[Sequence[int]]) -> list[Restored]:
        """Token ids of passages to what a plain reader begins with."""
        states = self.network.model.shared(self._pack(passages))
        return [Restored(part) for part in torch.split(states, [len(ids) for ids in passages])]

    @torch.inference_mode()
    def settle(self, passages: Sequence[Sequence[int]]) -> list[Restored]:
        """Token ids of passages to what :meth:`restore` makes of their rows, bit for bit.

        Continuous states beyond float16, which no row can hold, stay as they are.
        """
        if self.network.binarizer is not None:
            return self.restore(self.encode(passages))
        results: dict[int, Restored] = {}
        for batch in by_length([len(ids) for ids in passages]):
            lengths = [len(passages[i]) for i in batch]
            hidden = self.network.run_lower(self._pack([passages[i] for i in batch]), lengths)
            parts = torch.split(settled(hidden), lengths)
            results |= {i: Restored(part) for i, part in zip(batch, parts, strict=True)}
        return [results[i] for i in range(len(passages))]

    @torch.inference_mode()
    def restore(
        self, rows: Sequence[NDArray[np.uint8]], guesses: Guesses | None = None
    ) -> list[Restored]:
        """Rows of passages, and what is guessed of them, to what the joint layers begin with."""
        lengths = [len(part) for part in rows]
        whole = from_rows(self.network, np.concatenate(rows), self.scale, guesses)
        residual = torch.split(whole.residual, lengths)
        if whole.normed is None:
            return [Restored(part) for part in residual]
        normed = torch.split(whole.normed, lengths)
        return [Restored(r, n) for r, n in zip(residual, normed, strict=True)]

    @torch.inference_mode()
    def remember(
        self,
        queries: Sequence[Sequence[int]],
        passages: Sequence[Sequence[Restored]],
        merging: Merging = NO_MERGING,
        clock: Clock | None = None,
    ) -> list[Memory]:
        """Run queries and passages through the encoder and project the decoder's keys and values.

        Args:
            queries: Token ids of questions.
            passages: Each question's passages, at least one.
            merging: Runtime compression.
            clock: Gets the laps ``query``, ``joint`` and ``keys``.
        """
        clock = clock or Clock()
        lengths = [len(ids) for ids in queries]
        states = torch.split(self.network.run_lower(self._pack(queries), lengths), lengths)
        clock.lap("query")
        budget = self.query_budget
        first = lengths if budget is None else [budget] * len(lengths)
        encoded = self.network.run_joint(states, passages, first, merging)
        clock.lap("joint")
        memories = [self.decoder.remember(packed, merging) for packed in encoded]
        clock.lap("keys")
        return memories

    def _pack(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Token ids of several texts, one after the other: ``[N]`` int64."""
        flat = [i for row in rows for i in row]
        return torch.tensor(flat, dtype=torch.long, device=self.device)
