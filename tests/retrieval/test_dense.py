from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from btr.data.passages import Passage
from btr.errors import IncompatibleError, InputError, UsageError
from btr.retrieval import dense
from btr.retrieval.dense import DenseIndex, Embedder, code_scale, quantize

PASSAGES = [
    Passage("0", "Plants turn light into chemical energy, and give off oxygen.", "Photosynthesis"),
    Passage("1", "It began in New Orleans around 1900; its players improvise.", "Jazz"),
    Passage("2", "He discovered X-rays in 1895.", "Wilhelm Röntgen"),
    Passage("3", "Bridges carry roads over rivers. " * 30),
    Passage("4", "The Moon goes round the Earth once in about 27 days.", "Moon"),
    Passage("5", "Bread is made of flour, water, salt and yeast, left to rise and baked.", "Bread"),
]


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(dtype=torch.float32)


@pytest.fixture(scope="module")
def tiny_encoder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_question_is_nearest_to_its_passage(embedder: Embedder) -> None:
    vectors = embedder.encode_passages(PASSAGES)
    assert vectors.shape == (6, embedder.dim) == (6, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    questions = {"how long does the moon take to orbit us": 4, "what music is from Louisiana": 1}
    for question, ordinal in questions.items():
        query = embedder.encode_query(question)
        assert query.shape == (384,)
        assert (vectors @ query).argmax() == ordinal


def test_a_vector_is_the_mean_of_the_models_last_states(embedder: Embedder) -> None:
    from transformers import AutoModel, AutoTokenizer

    from btr.models import resolve

    folder = resolve("minilm-encoder")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors = embedder.encode_passages(PASSAGES)
    for passage, vector in zip(PASSAGES, vectors, strict=True):
        text = f"{passage.title}. {passage.text}" if passage.title else passage.text
        inputs = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)


def test_bf16_is_the_same_up_to_its_precision(embedder: Embedder) -> None:
    half = Embedder(dtype=torch.bfloat16)
    cosines = (half.encode_passages(PASSAGES) * embedder.encode_passages(PASSAGES)).sum(1)
    assert cosines.min() > 0.999
    assert half.fingerprint == embedder.fingerprint


def test_a_long_call_is_its_groups_one_by_one(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "GROUP_PASSAGES", 4)
    monkeypatch.setattr(dense, "BATCH_TOKENS", 64)
    many = PASSAGES * 3
    pieces = [embedder.encode_passages(many[start : start + 8]) for start in (0, 8, 16)]
    np.testing.assert_array_equal(embedder.encode_passages(many), np.concatenate(pieces))


@given(st.lists(st.integers(1, 256), max_size=60))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int]) -> None:
    batches = list(dense._batches(lengths))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert max(lengths[place] for place in batch) * len(batch) <= dense.BATCH_TOKENS


def test_odd_texts_have_vectors(embedder: Embedder) -> None:
    odd = [Passage("0", ""), Passage("1", "\ud800 \0 💥"), Passage("2", "word " * 5000)]
    vectors = embedder.encode_passages(odd)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    cut = embedder.encode_passages([Passage("2", "word " * 300)])
    np.testing.assert_allclose(vectors[2], cut[0], atol=1e-6)
    assert embedder.encode_passages([]).shape == (0, 384)
    assert embedder.encode_query("").shape == (384,)


def test_threads_share_an_embedder(embedder: Embedder) -> None:
    expected, results = embedder.encode_query("what is jazz"), []

    def work() -> None:
        for _ in range(5):
            results.append(embedder.encode_query("what is jazz"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_loading_is_quiet_and_leaves_no_settings(
    tiny_encoder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    Embedder(str(tiny_encoder))
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")
    assert after == before


def test_another_folder_is_another_embedder(
    tiny_encoder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = Embedder(str(tiny_encoder))
    assert first.dim == 16
    assert first.encode_passages(PASSAGES).shape == (6, 16)
    assert Embedder(str(tiny_encoder)).fingerprint == first.fingerprint
    weights = load_file(tiny_encoder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7, 3] += 1
    (tmp_path / "config.json").write_bytes((tiny_encoder / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(tmp_path)
    other = Embedder(str(tmp_path)).fingerprint
    assert {key for key in other if other[key] != first.fingerprint[key]} == {"dense_weights"}


def test_checkpoints_that_are_no_encoder_are_refused(
    tiny_encoder: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        Embedder(str(tmp_path))
    (tmp_path / "config.json").write_bytes((tiny_encoder / "config.json").read_bytes())
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        Embedder(str(tmp_path))
    weights = load_file(tiny_encoder / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"lacks weights.*encoder\.layer\.0\.output"):
        Embedder(str(tmp_path))
    with pytest.raises(InputError, match="cannot be loaded"):
        Embedder("nobody/has-this-model")


@given(arrays(np.float32, (3, 24), elements=st.floats(-1, 1, width=32)))
def test_codes_are_the_nearest_and_clipped(vectors: np.ndarray) -> None:
    codes = quantize(vectors)
    assert codes.dtype == np.int8
    assert codes.shape == vectors.shape
    step = 1 / code_scale(24)
    near = np.abs(vectors) <= 127 * step
    assert (np.abs(codes * step - vectors)[near] <= step * 0.5001).all()
    assert (codes[~near] == np.sign(vectors[~near]) * 127).all()
    np.testing.assert_array_equal(quantize(-vectors), -codes)


def test_a_code_depends_on_its_own_vector_only() -> None:
    vectors = unit_vectors(50, 384)
    rows = np.concatenate([quantize(vectors[i : i + 1]) for i in range(50)])
    np.testing.assert_array_equal(quantize(vectors), rows)
    assert quantize(vectors[:0]).shape == (0, 384)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_codes_of_no_number_are_refused(bad: float) -> None:
    vectors = unit_vectors(2, 8)
    vectors[1, 3] = bad
    with pytest.raises(ValueError, match="not a finite number"):
        quantize(vectors)


def test_the_index_finds_what_fp32_finds() -> None:
    vectors, queries = unit_vectors(4000, 384), unit_vectors(50, 384, seed=1)
    index = DenseIndex(384, 4000, iter(np.split(quantize(vectors), 4)))
    assert len(index) == 4000
    shared = 0
    for query in queries:
        hits = index.search(query, 20)
        cosines = vectors @ query
        shared += len({o for o, _ in hits} & set(np.argsort(-cosines)[:20].tolist()))
        assert [s for _, s in hits] == pytest.approx(cosines[[o for o, _ in hits]], abs=0.01)
    assert shared >= 0.95 * 20 * 50


@pytest.mark.parametrize("k", [1, 7, 20, 100, 333, 999, 1000, 5000])
def test_equal_scores_are_ordered_by_ordinal_wherever_the_list_is_cut(k: int) -> None:
    kinds = quantize(unit_vectors(5, 64))
    codes = kinds[np.random.default_rng(0).integers(0, 5, 1000)]
    query = unit_vectors(1, 64, seed=2)[0]
    whole = np.rint(query * np.float32(127 / np.abs(query).max())).astype(np.int64)
    scores = codes.astype(np.int64) @ whole
    expected = sorted(range(1000), key=lambda ordinal: (-scores[ordinal], ordinal))[:k]
    assert [o for o, _ in DenseIndex(64, 1000, [codes]).search(query, k)] == expected


def test_memory_is_one_byte_a_dimension() -> None:
    index = DenseIndex(384, 1000, [quantize(unit_vectors(1000, 384))])
    assert index._index.codes.size() == 1000 * 384


def test_small_and_empty_indexes() -> None:
    query = unit_vectors(1, 16)[0]
    assert DenseIndex(16, 0, []).search(query, 5) == []
    one = DenseIndex(16, 1, [quantize(query[np.newaxis])])
    assert one.search(query, 5) == [(0, pytest.approx(1, abs=0.05))]
    assert one.search(np.zeros(16, np.float32), 5) == []
    with pytest.raises(UsageError, match="at least 1"):
        one.search(query, 0)
    with pytest.raises(UsageError, match="does not fit"):
        one.search(query[:8], 5)


@pytest.mark.parametrize(
    ("count", "shards"),
    [
        (3, [np.zeros((2, 8), np.int8)]),
        (1, [np.zeros((2, 8), np.int8)]),
        (2, [np.zeros((2, 9), np.int8)]),
        (2, [np.zeros((2, 8), np.float32)]),
        (16, [np.zeros(16, np.int8)]),
    ],
)
def test_vectors_that_do_not_fit_are_refused(count: int, shards: list[np.ndarray]) -> None:
    with pytest.raises(IncompatibleError, match="dense index"):
        DenseIndex(8, count, shards)


@pytest.mark.parametrize("imports", ["import faiss, torch", "import torch, faiss"])
def test_faiss_and_torch_live_in_one_process(imports: str) -> None:
    # Each brings its own OpenMP runtime.
    script = f"""
{imports}
import numpy as np
index = faiss.IndexFlatIP(8)
index.add(np.eye(8, dtype=np.float32))
before = torch.get_num_threads()
torch.ones(300, 300) @ torch.ones(300, 300)
assert index.search(np.eye(8, dtype=np.float32), 1)[1].ravel().tolist() == list(range(8))
import btr.retrieval.hybrid
assert torch.get_num_threads() == before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
