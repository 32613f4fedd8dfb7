"""The extractive reader against Hugging Face, against itself, and against its promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertForQuestionAnswering

from btr.errors import CorruptError, UsageError
from btr.readers.bert import BertReader
from btr.readers.bert_text import tokenize_passage, tokenize_query
from tiny_readers import LAYERS, make_reader, sure_guesses, tiny_model

QUESTION = "When was the first bridge built?"
# Sums in another order: float32 rounding over 4 layers of width 32 with weights of size 0.3.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer) -> BertReader:
    return make_reader(tmp_path_factory.mktemp("r") / "plain", tokenizer, "plain", 0)


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory, tokenizer) -> BertReader:
    return make_reader(tmp_path_factory.mktemp("r") / "decomposed", tokenizer, "decomposed", 2)


@pytest.fixture(scope="module")
def btr(tmp_path_factory, tokenizer) -> BertReader:
    return make_reader(tmp_path_factory.mktemp("r") / "btr", tokenizer, "btr", 2)


@pytest.fixture(scope="module")
def words(tmp_path_factory, tokenizer) -> BertReader:
    return make_reader(tmp_path_factory.mktemp("r") / "words", tokenizer, "btr", 2, rule="words")


def reader_logits(reader: BertReader, question: str, passages) -> list[torch.Tensor]:
    """Logits of ``[CLS]`` and the text's tokens, in the order of ``passages``."""
    order, parts = reader._passage_states(passages, None, _NoClock())
    ids = tokenize_query(reader.tokenizer, question, reader.config.query_budget)
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    with torch.inference_mode():
        query = reader.network.encode_query(torch.tensor([ids]), mask)[0]
        head = reader.network.model.qa_outputs
        logits = [head(states).float() for states in reader._joint(query, parts)]
    return [logits[order.index(i)] for i in range(len(passages))]


class _NoClock:
    def lap(self, stage: str) -> None: ...


def hugging_face_logits(reader: BertReader, model, question: str, passage) -> torch.Tensor:
    query = tokenize_query(reader.tokenizer, question, reader.config.query_budget)
    ids, start, _, _ = tokenize_passage(reader.tokenizer, passage.title, passage.text, 96)
    positions = [*range(len(query)), *(reader.config.query_budget + i for i in range(len(ids)))]
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor([query + ids]),
            token_type_ids=torch.tensor([[0] * len(query) + [1] * len(ids)]),
            position_ids=torch.tensor([positions]),
        )
    logits = torch.stack([out.start_logits[0], out.end_logits[0]], dim=1)
    return torch.cat([logits[:1], logits[len(query) + start : -1]])


def test_plain_equals_hugging_face(plain, tokenizer, passages):
    model = tiny_model(tokenizer)
    assert isinstance(model, BertForQuestionAnswering)
    ours = reader_logits(plain, QUESTION, passages)
    for passage, logits in zip(passages, ours, strict=True):
        theirs = hugging_face_logits(plain, model, QUESTION, passage)
        torch.testing.assert_close(logits, theirs, **TOLERANCE)


def test_decomposed_with_nothing_below_the_cut_equals_plain(tmp_path, plain, tokenizer, passages):
    zero = make_reader(tmp_path / "zero", tokenizer, "decomposed", 0)
    for a, b in zip(
        reader_logits(plain, QUESTION, passages),
        reader_logits(zero, QUESTION, passages),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_the_cut_changes_something(plain, decomposed, passages):
    a, b = (reader_logits(r, QUESTION, passages[:1])[0] for r in (plain, decomposed))
    assert not torch.allclose(a, b, atol=1e-2)


def test_training_forward_equals_reading(decomposed, btr, words, tokenizer, passages):
    """The padded network that is trained and the packed one that reads are the same function."""
    for reader in (decomposed, btr, words):
        query = torch.tensor([tokenize_query(tokenizer, QUESTION, 24)])
        tokens = [tokenize_passage(tokenizer, p.title, p.text, 96) for p in passages]
        rows = [t[0] for t in tokens]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
        query_mask = torch.ones(len(rows), query.shape[1], dtype=torch.bool)
        network = reader.network
        with torch.inference_mode():
            states = network.binarize(network.encode_passage(ids, mask), ids)
            hidden = network.encode_query(query.expand(len(rows), -1), query_mask)
            logits = network.read(hidden, query_mask, states, mask)
        ours = reader_logits(reader, QUESTION, passages)
        for i, row in enumerate(rows):
            text = logits[i, query.shape[1] :][tokens[i][1] : len(row) - 1]
            padded = torch.cat([logits[i, :1], text])
            torch.testing.assert_close(ours[i], padded, **TOLERANCE)


def test_stored_states_answer_like_states_encoded_now(decomposed, btr, words, passages):
    for reader in (decomposed, btr, words):
        stored = reader.encode(passages)
        a, b = reader.read(QUESTION, passages, stored), reader.read(QUESTION, passages)
        assert [x.text for x in a.answers] == [x.text for x in b.answers]
        # fp16 storage rounds the decomposed states; bits are exact.
        tolerance = 5e-2 if reader is decomposed else 1e-6
        assert a.no_answer == pytest.approx(b.no_answer, rel=tolerance)


def test_bits_of_what_words_leave_unsaid(btr, words, passages):
    """Rows with ids, and what is made of them, written down again here."""
    assert words.store_kind == "bits+ids"
    assert words.fingerprint["lower_weights"] != btr.fingerprint["lower_weights"]
    (state,), network = words.encode(passages[:1]), words.network
    (ids,) = words.token_ids(passages[:1])
    assert state.rows.shape == (len(ids), 32 // 8 + 2)
    assert state.rows[:, 4:].copy().view("<u2")[:, 0].tolist() == ids
    with torch.inference_mode():
        e = network.model.bert.embeddings.word_embeddings.weight[ids]
        e = e / e.square().mean(1, keepdim=True).sqrt()
        mean = e @ network.words.mean.weight.T + network.words.mean.bias
        tokens = torch.tensor([ids])
        h = network.encode_passage(tokens, torch.ones_like(tokens, dtype=torch.bool))[0]
        bits = torch.where(h > mean, 1.0, -1.0)
        wanted = mean + bits @ network.words.bits.weight.T
    assert np.array_equal(np.packbits((bits > 0).numpy(), axis=1), state.rows[:, :4])
    torch.testing.assert_close(words._from_rows([state]), wanted, **TOLERANCE)
    rows = state.rows.copy()
    rows[3, 4:] = 255
    with pytest.raises(CorruptError, match="a stored token that the reader does not have"):
        words.read(QUESTION, passages[:1], [replace(state, rows=rows)])


@pytest.mark.parametrize("rule", ["calibrated", "words"])
def test_what_a_store_guesses_takes_the_place_of_its_bits(request, rule, passages):
    """Sure guesses over inverted bits answer as the bits themselves."""
    btr = request.getfixturevalue("btr" if rule == "calibrated" else "words")
    stored = btr.encode(passages)
    guessed = [sure_guesses(state, 32) for state in stored]
    a, b = btr.read(QUESTION, passages, stored), btr.read(QUESTION, passages, guessed)
    assert [x.text for x in a.answers] == [x.text for x in b.answers]
    assert a.no_answer == pytest.approx(b.no_answer, rel=1e-4)
    mixed = btr.read(QUESTION, passages, [stored[0], *guessed[1:]])
    assert mixed.no_answer == pytest.approx(a.no_answer, rel=1e-4)


def test_bits_are_a_sixteenth_of_float16(decomposed, btr, passages):
    for bits, states in zip(btr.encode(passages), decomposed.encode(passages), strict=True):
        assert bits.rows.shape == (len(states.rows), 32 // 8)
        assert states.rows.nbytes == 16 * bits.rows.nbytes
        assert bits.text_start == states.text_start


def test_order_batching_and_company_never_change_an_answer(plain, decomposed, btr, passages):
    shuffled = [passages[i] for i in (3, 0, 4, 2, 1)]
    for reader in (plain, decomposed, btr):
        a, b = reader.read(QUESTION, passages), reader.read(QUESTION, shuffled)
        assert [(x.text, x.passage.id, x.start) for x in a.answers] == [
            (x.text, x.passage.id, x.start) for x in b.answers
        ]
        alone = reader_logits(reader, QUESTION, passages[1:2])[0]
        together = reader_logits(reader, QUESTION, passages)[1]
        torch.testing.assert_close(alone, together, **TOLERANCE)
    one_by_one = [btr.encode([p])[0].rows for p in passages]
    for a_rows, b_state in zip(one_by_one, btr.encode(passages), strict=True):
        # A state within rounding of 0 may change its sign with its company; nothing else may.
        assert (np.unpackbits(a_rows) != np.unpackbits(b_state.rows)).mean() < 1e-3


def test_answers_are_exact_spans_with_document_offsets(btr, passages):
    reading = btr.read(QUESTION, passages, top=10)
    assert len(reading.answers) == 10
    for answer in reading.answers:
        assert answer.text
        assert answer.passage.text[answer.start : answer.end] == answer.text
        assert answer.document_start == answer.passage.start + answer.start
        assert answer.document_end - answer.document_start == len(answer.text)
    assert len({a.text.casefold() for a in reading.answers}) == 10


def test_one_distribution_over_all_passages_and_no_answer(btr, passages):
    together = btr.read(QUESTION, passages, top=100_000)
    assert together.no_answer + sum(a.probability for a in together.answers) == pytest.approx(1)
    probabilities = [a.probability for a in together.answers]
    assert probabilities == sorted(probabilities, reverse=True)
    alone = btr.read(QUESTION, passages[:1], top=100_000)
    # More passages share the same mass, but the odds between a span and "no answer" stay.
    for b in alone.answers:
        a = next(x for x in together.answers if x.text.casefold() == b.text.casefold())
        if a.passage.id == "p0" and not any(a.text in p.text for p in passages[1:]):
            assert a.probability / together.no_answer == pytest.approx(
                b.probability / alone.no_answer, rel=1e-3
            )


def test_special_tokens_in_a_document_are_text(btr, passages):
    from dataclasses import replace

    hostile = replace(passages[0], text="[SEP] [CLS] the [PAD] lake [MASK]", title="[SEP]")
    ids, start, _, offsets = tokenize_passage(btr.tokenizer, hostile.title, hostile.text, 96)
    special = set(btr.tokenizer.all_special_ids) - {btr.tokenizer.unk_token_id}
    assert not special & set(ids[: start - 1] + ids[start:-1])
    assert ids[start - 1] == ids[-1] == btr.tokenizer.sep_token_id
    assert offsets[0] == (0, 1)


def test_a_passage_over_the_budget_is_reported(btr, passages):
    from dataclasses import replace

    long = replace(passages[0], text="the river is long " * 60)
    (state,) = btr.encode([long])
    assert state.truncated
    assert len(state.rows) == 96
    assert btr.read(QUESTION, [long], [state]).truncated == 1


def test_no_passages_mean_no_answer(btr):
    reading = btr.read(QUESTION, [])
    assert reading.answers == ()
    assert reading.no_answer == 1.0


def test_plain_has_nothing_to_store_and_takes_no_states(plain, btr, passages):
    with pytest.raises(UsageError, match="no states to store"):
        plain.encode(passages)
    with pytest.raises(UsageError, match="states do not fit"):
        plain.read(QUESTION, passages, btr.encode(passages))
    with pytest.raises(UsageError, match="found 1 for 5 passages"):
        btr.read(QUESTION, passages, btr.encode(passages[:1]))


def test_the_fingerprint_is_of_contents(tmp_path, btr, tokenizer):
    same = make_reader(tmp_path / "elsewhere" / "btr", tokenizer, "btr", 2)
    assert same.fingerprint == btr.fingerprint
    other = make_reader(tmp_path / "other", tokenizer, "btr", 2, seed=1)
    deeper = make_reader(tmp_path / "deeper", tokenizer, "btr", 3)
    changed = {k for k in btr.fingerprint if other.fingerprint[k] != btr.fingerprint[k]}
    assert changed == {"lower_weights"}
    assert deeper.fingerprint["split_layer"] == "3"
    assert LAYERS == 4
