"""Dense retrieval: a sentence encoder, one signed byte per dimension, a flat faiss index.

Shapes: n passages, d the encoder's width (384 for MiniLM).

The parts meet in one convention: vectors have length 1, a stored code is the vector times
``code_scale(d)`` rounded to a byte, and scores are cosines.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from btr.errors import IncompatibleError, InputError, UsageError
from btr.machine import DTYPES, default_dtype
from btr.models import resolve

if TYPE_CHECKING:
    from btr.data.passages import Passage

# Longer passages are cut: the encoder was trained up to here, and a passage is about 130 tokens.
MAX_TOKENS = 256
# Passages that are sorted and batched together. The last bits of a matrix product may depend on the
# other rows, so the grouping is part of the result: fixed, and any multiple of it may be a shard.
GROUP_PASSAGES = 512
# Tokens of a batch, padding included: fills the matrix units; larger batches leave the cache.
BATCH_TOKENS = 4096
# Batches are padded to a multiple of this: torch prepares and keeps kernels for every new shape.
WIDTH_STEP = 16
# A code reaches this many standard deviations of a unit vector's component. Measured: see quantize.
CODE_SIGMAS = 6.0
CODE_MAX = 127


class Embedder:
    """A sentence encoder: mean of the last states, scaled to length 1. Safe to share by threads.

    Attributes:
        dim: d, the length of a vector.
        fingerprint: What made the vectors: weights, tokenizer, and the settings of this module.
            Vectors of two embedders may be compared if all fields are equal. The dtype is not
            among them: bf16 and fp32 differ by less than the rounding to codes.
    """

    def __init__(self, name: str = "minilm-encoder", *, dtype: torch.dtype | None = None) -> None:
        """Load an encoder.

        Args:
            name: A named model, a folder or a Hub id (see ``btr.models``) of a transformer whose
                last states are meant to be averaged.
            dtype: Of the arithmetic; None for the faster one here.

        Raises:
            InputError: No such model.
            IncompatibleError: A named model that is not the recorded one, or a checkpoint without
                an encoder's weights.
        """
        source = resolve(name)
        try:
            with _quiet_loading():
                self._tokenizer = AutoTokenizer.from_pretrained(source)
                # use_safetensors: other weight files are pickles.
                model, report = AutoModel.from_pretrained(
                    source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
                )
        except (OSError, ValueError) as error:
            raise InputError(
                "the sentence encoder cannot be loaded",
                where=name,
                found=str(error).strip().split("\n")[0],
                todo="give a folder or Hub id of a transformer with safetensors and a tokenizer",
            ) from error
        missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise IncompatibleError(
                "a sentence encoder's checkpoint lacks weights", where=name, expected=missing[0]
            )
        # The pooler works for classification heads; nothing of it reaches the last states.
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.dim: int = model.config.hidden_size
        self.parameters = sum(p.numel() for p in model.encoder.parameters())
        self._max_tokens = min(MAX_TOKENS, model.config.max_position_embeddings)
        self.fingerprint: dict[str, str] = {
            "dense_weights": _weights_digest(model),
            "dense_tokenizer": xxhash.xxh3_128_hexdigest(
                self._tokenizer.backend_tokenizer.to_str().encode("utf-8")
            ),
            "dense_settings": f"mean of {self._max_tokens} tokens of 'title. text'; "
            f"int8 to {CODE_SIGMAS:g} sigma",
        }
        self._model = model.to(dtype or DTYPES[default_dtype()]).eval().requires_grad_(False)
        # The tokenizer keeps truncation as state: two threads in it raise "Already borrowed".
        self._lock = threading.Lock()

    def encode_passages(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        """Vectors of passages, encoded as ``title. text``.

        The vectors of a call are those of its pieces of ``GROUP_PASSAGES``, each encoded alone.

        Returns:
            float32 ``[n, d]``, rows of length 1.
        """
        texts = [f"{p.title}. {p.text}" if p.title else p.text for p in passages]
        vectors = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), GROUP_PASSAGES):
            group = self._tokens(texts[start : start + GROUP_PASSAGES])
            for batch in _batches([len(ids) for ids in group]):
                rows = [start + place for place in batch]
                vectors[rows] = self._encode([group[place] for place in batch])
        return vectors

    def encode_query(self, question: str) -> NDArray[np.float32]:
        """Vector of one question, float32 ``[d]``, length 1.

        Always alone: no other question can touch the last bits of its vector.
        """
        vector: NDArray[np.float32] = self._encode(self._tokens([question]))[0]
        return vector

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        # Lone surrogates have no UTF-8 form, and the tokenizer refuses them.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        with self._lock:
            encoded = self._tokenizer(clean, truncation=True, max_length=self._max_tokens)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    @torch.inference_mode()
    def _encode(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """Unit vectors float32 ``[b, d]`` of b lists of token ids."""
        lengths = torch.tensor([[len(row)] for row in batch])
        width = min(_padded(int(lengths.max())), self._max_tokens)
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [padding] * (width - len(row)) for row in batch])
        mask = torch.arange(width) < lengths
        states = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        sums = (states.float() * mask.unsqueeze(-1)).sum(1)
        unit = torch.nn.functional.normalize(sums / lengths, dim=1)
        return np.asarray(unit.numpy(), np.float32)


def code_scale(dim: int) -> float:
    """Codes per unit of a vector's component, for unit vectors of ``dim`` components.

    A component of a unit vector has the standard deviation ``1 / sqrt(dim)``; the largest code
    stands for ``CODE_SIGMAS`` of them. One scale for all, fixed beforehand: a code then depends on
    its own vector only, so a store can be built in pieces, resumed and added to.
    """
    return CODE_MAX * math.sqrt(dim) / CODE_SIGMAS


def quantize(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round unit vectors to one signed byte per component.

    Args:
        vectors: float32 ``[n, d]``, rows of length 1.

    Returns:
        int8 ``[n, d]``, from -127 to 127; larger components are clipped.

    Raises:
        ValueError: Something in ``vectors`` is not a finite number.
    """
    if not np.isfinite(vectors).all():
        raise ValueError("a vector has a component that is not a finite number")
    codes = np.rint(vectors * np.float32(code_scale(vectors.shape[-1])))
    clipped: NDArray[np.int8] = np.clip(codes, -CODE_MAX, CODE_MAX).astype(np.int8)
    return clipped


class DenseIndex:
    """All codes in memory, d bytes a passage, searched exhaustively. Safe to share by threads.

    Scores are sums of integers below 2**24, hence exact: the same on every machine, and equal
    vectors have equal scores.
    """

    def __init__(self, dim: int, count: int, shards: Iterable[NDArray[np.int8]]) -> None:
        """Load the codes.

        Args:
            dim: d.
            count: n, the sum over the shards.
            shards: int8 ``[n_i, d]`` each, in ordinal order.

        Raises:
            IncompatibleError: A shard is not int8 of width d, or the shards do not add up.
        """
        self._index = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        # Written in place: add() wants float32 copies and grows by doubling.
        self._index.codes.resize(count * dim)
        codes = faiss.rev_swig_ptr(self._index.codes.data(), count * dim).reshape(count, dim)
        filled = 0
        for shard in shards:
            end = filled + len(shard)
            if shard.dtype != np.int8 or shard.shape[1:] != (dim,) or end > count:
                raise IncompatibleError(
                    "a shard of vectors does not fit the dense index",
                    expected=f"int8 of width {dim}, {count} in all",
                    found=f"{shard.dtype} of shape {shard.shape} at {filled}",
                )
            # faiss keeps a signed byte as itself plus 128, which is the sign bit flipped.
            np.bitwise_xor(shard.view(np.uint8), 0x80, out=codes[filled:end])
            filled = end
        if filled != count:
            raise IncompatibleError(
                "vectors are missing from the dense index", expected=str(count), found=str(filled)
            )
        self._index.ntotal = count

    def __len__(self) -> int:
        """The number of passages."""
        return int(self._index.ntotal)

    def search(self, query: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """The k passages with the largest cosine.

        Args:
            query: float32 ``[d]``, length 1.
            k: At least 1.

        Returns:
            ``(ordinal, cosine)``, best first, equal scores by the smaller ordinal; fewer than k
            where there are fewer passages.

        Raises:
            UsageError: k is below 1, or the query has another width than the index.
        """
        if k < 1:
            raise UsageError("the number of passages must be at least 1", found=str(k))
        if query.shape != (self._index.d,):
            raise UsageError(
                "the query vector does not fit the dense index",
                expected=f"{self._index.d} numbers",
                found=f"shape {query.shape}",
            )
        k = min(k, len(self))
        largest = float(np.abs(query).max())
        if not k or not largest:
            return []
        # faiss cuts the query's fractions off on x86 and keeps them elsewhere:
        # a query of integers means the same everywhere. Its own largest component sets its scale,
        # as only the order of the passages counts.
        scale = CODE_MAX / largest
        whole = np.rint(query * np.float32(scale)).astype(np.float32)
        scores, ordinals = (
            a[0] for a in self._index.search(whole[np.newaxis], min(k + 1, len(self)))
        )
        if len(scores) > k and scores[k] == scores[k - 1]:
            # Of equal scores faiss keeps any: take all of them, from which the sort picks.
            _, scores, ordinals = self._index.range_search(whole[np.newaxis], scores[k] - 0.5)
        best = np.lexsort((ordinals, -scores))[:k]
        unit = 1.0 / (scale * code_scale(self._index.d))
        return [(int(ordinals[i]), float(scores[i]) * unit) for i in best]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts by falling length, cut so that no batch exceeds ``BATCH_TOKENS`` padded."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // _padded(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _padded(length: int) -> int:
    return -(-max(1, length) // WIDTH_STEP) * WIDTH_STEP


def _weights_digest(model: torch.nn.Module) -> str:
    """XXH3 of all weights by name; against mix-ups, not attacks."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode("utf-8"))
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' progress bar and load report, which would garble our own output."""
    log: Any = transformers_logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()
