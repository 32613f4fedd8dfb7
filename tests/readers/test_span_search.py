"""The search for the most probable spans against scoring all of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.readers.span_search import SpanAnswer, search_spans

VOCABULARY, END = 12, 5


class Model:
    """A small language model: what follows a prefix is random, but always the same."""

    def __init__(self, seed: int, sharpness: float) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.calls: list[int] = []
        self.row = cache(lambda prefix: self._row(seed, sharpness, prefix))

    @staticmethod
    def _row(seed, sharpness, prefix):
        generator = np.random.default_rng([seed, len(prefix), *prefix])
        logits = sharpness * generator.standard_normal(VOCABULARY)
        return (logits - np.logaddexp.reduce(logits)).astype(np.float32)

    def __call__(self, prefixes):
        self.calls.append(len(prefixes))
        self.asked += prefixes
        return np.stack([self.row(prefix) for prefix in prefixes])

    def log_probability(self, tokens):
        total = 0.0
        for i, token in enumerate((*tokens, END)):
            total += float(self.row(tokens[:i])[token])
        return total


def all_spans(passages, starts, ends, longest):
    """Every span's places, in the order of first occurrence, shorter before longer."""
    spans = {}
    for number, passage in enumerate(passages):
        for i in range(len(passage)):
            for j in range(i, min(i + longest, len(passage))):
                tokens = tuple(passage[i : j + 1])
                if starts[number][i] and ends[number][j] and END not in tokens:
                    spans.setdefault(tokens, []).append((number, i))
    return spans


def brute_force(model, passages, starts, ends, longest, says):
    spans = all_spans(passages, starts, ends, longest)
    answers = [SpanAnswer(t, model.log_probability(t), tuple(p)) for t, p in spans.items()]
    answers.sort(key=lambda answer: -answer.log_probability)  # stable: ties stay
    best = {}
    for answer in answers:
        number, first = answer.places[0]
        best.setdefault(says(number, first, first + len(answer.tokens) - 1), answer)
    return list(best.values())


def everywhere(passages):
    return [[True] * len(passage) for passage in passages]


def uniform(prefixes):
    return np.full((len(prefixes), VOCABULARY), -np.log(VOCABULARY), np.float32)


# Few different tokens, so that spans repeat; the end token, which no answer holds, among them.
TOKEN = st.tuples(st.integers(0, END), st.booleans(), st.booleans())
PASSAGES = st.lists(st.lists(TOKEN, max_size=12), max_size=4)


@given(
    PASSAGES,
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 6]),  # 0: all spans of a length tie
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([2, VOCABULARY]),  # tokens that say the same: every second one, or none
)
def test_answers_are_those_of_brute_force(marked, seed, sharpness, longest, top, batch, sayings):
    passages, starts, ends = ([[token[k] for token in row] for row in marked] for k in range(3))
    model = Model(seed, sharpness)
    limits = {"end_token": END, "longest": longest, "top": top, "batch": batch}

    def says(number, first, last):
        return tuple(token % sayings for token in passages[number][first : last + 1])

    answers, calls = search_spans(passages, starts, ends, model, **limits, says=says)
    assert calls == len(model.calls)
    assert all(1 <= n <= batch for n in model.calls)
    assert len(set(model.asked)) == len(model.asked)
    # Not one prefix that no span begins with: there is no answer behind it.
    spans = all_spans(passages, starts, ends, longest)
    assert set(model.asked) <= {tokens[:n] for tokens in spans for n in range(len(tokens) + 1)}
    # Sums in the same order, so equal to the last bit.
    assert answers == brute_force(model, passages, starts, ends, longest, says)[:top]


def test_equal_texts_are_one_answer_with_all_places():
    passages = [[1, 2, 3, 1, 2], [], [4, 1, 2], [1, 2]]
    starts = everywhere(passages)
    ends = everywhere(passages)
    starts[3][0] = False
    ends[0][4] = False
    answers, _ = search_spans(passages, starts, ends, uniform, end_token=END, longest=3, top=99)
    assert [a.places for a in answers if a.tokens == (1, 2)] == [((0, 0), (2, 1))]
    assert len({a.tokens for a in answers}) == len(answers)


def test_no_span_crosses_passages_or_the_end_token():
    passages = [[1, 2], [3, END, 4], [6]]
    flags = everywhere(passages)
    answers, _ = search_spans(passages, flags, flags, uniform, end_token=END, longest=5, top=99)
    assert [a.tokens for a in answers] == [(1,), (2,), (3,), (4,), (6,), (1, 2)]


def test_a_span_of_the_full_length_is_found():
    passages = [[1, 2, 3, 4]]
    ends = [[False, False, False, True]]
    starts = [[True, False, False, False]]
    for longest, found in ((3, []), (4, [(1, 2, 3, 4)])):
        answers, calls = search_spans(
            passages, starts, ends, uniform, end_token=END, longest=longest
        )
        assert [a.tokens for a in answers] == found
        assert calls == (longest + 1 if found else 0)  # a way without an end is not walked


def test_ties_are_in_the_order_of_first_occurrence():
    passages = [[1, 2, 3, 1]]
    ends = [[False, True, True, True]]  # 1 begins first, but is an answer only at the end
    answers, _ = search_spans(
        passages, everywhere(passages), ends, uniform, end_token=END, longest=2, top=9
    )
    assert [a.tokens for a in answers] == [(2,), (3,), (1,), (1, 2), (2, 3), (3, 1)]


@pytest.mark.parametrize("batch", [1, 16])
def test_a_tie_is_no_reason_to_stop(batch):
    passages = [[1, 2, 3]]
    ends = [[False, False, True]]
    answers, _ = search_spans(  # all certain: 3 is complete before 1 2 3 is, which begins first
        passages,
        everywhere(passages),
        ends,
        lambda p: uniform(p) * 0,
        end_token=END,
        longest=3,
        batch=batch,
    )
    assert [a.tokens for a in answers] == [(1, 2, 3)]


def test_impossible_tokens_come_last():
    def score(prefixes):
        scores = uniform(prefixes)
        scores[:, 1] = -np.inf
        return scores

    passages = [[1, 2]]
    flags = everywhere(passages)
    answers, _ = search_spans(passages, flags, flags, score, end_token=END, longest=2, top=3)
    assert [a.tokens for a in answers] == [(2,), (1,), (1, 2)]
    assert np.isfinite(answers[0].log_probability)
    assert answers[1].log_probability == answers[2].log_probability == -np.inf


def test_rounding_above_certainty_counts_as_certainty():
    passages = [[1, 2]]
    flags = everywhere(passages)
    answers, _ = search_spans(
        passages, flags, flags, lambda p: uniform(p) * 0 + 1e-6, end_token=END, longest=2
    )
    assert answers == [SpanAnswer((1,), 0.0, ((0, 0),))]


@pytest.mark.parametrize("passages", [[], [[]], [[], []], [[1, 2], [3]]])
def test_no_span_is_no_answer_and_no_call(passages):
    def score(prefixes):
        raise AssertionError("asked for nothing")

    none = [[False] * len(passage) for passage in passages]
    every = everywhere(passages)
    for starts, ends in ((none, every), (every, none)):
        assert search_spans(passages, starts, ends, score, end_token=END, longest=3) == ([], 0)


def test_a_sure_model_is_asked_about_as_often_as_greedy_search():
    generator = np.random.default_rng(0)
    vocabulary, end, longest = 500, 499, 20
    passages = [generator.integers(0, 499, 1000).tolist() for _ in range(8)]
    flags = everywhere(passages)
    target = (*passages[3][100:105], end)
    asked = 0

    def score(prefixes):
        nonlocal asked
        asked += len(prefixes)
        scores = np.full((len(prefixes), vocabulary), np.log(0.1 / (vocabulary - 1)), np.float32)
        for row, prefix in zip(scores, prefixes, strict=True):
            if prefix == target[: len(prefix)]:
                row[target[len(prefix)]] = np.log(0.9)
        return scores

    answers, calls = search_spans(passages, flags, flags, score, end_token=end, longest=longest)
    assert [(a.tokens, a.places) for a in answers] == [(target[:-1], ((3, 100),))]
    assert answers[0].log_probability == pytest.approx(6 * np.log(0.9), rel=1e-6)  # float32
    assert calls == len(target)
    assert asked <= 16 * calls  # of about 150,000 prefixes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"starts": [[True]]}, "starts must"),
        ({"ends": [[True, True], []]}, "ends must"),
        ({"passages": [[1, -2]]}, "negative"),
        ({"end_token": -1}, "negative"),
        ({"longest": 0}, "at least 1"),
        ({"top": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"passages": [[1, VOCABULARY]]}, "at least 13"),
        ({"end_token": VOCABULARY}, "at least 13"),
        ({"score": lambda p: uniform(p)[0]}, r"\[1, at least 6\]"),
        ({"score": lambda p: uniform([*p, ()])}, r"\[1, at least 6\]"),
        ({"score": lambda p: uniform(p) * np.float32(np.nan)}, "NaN"),
        ({"score": lambda p: -uniform(p)}, "above 0"),
    ],
)
def test_wrong_calls_are_refused(changed, message):
    call = {
        "passages": [[1, 2]],
        "starts": [[True, True]],
        "ends": [[True, True]],
        "score": uniform,
        "end_token": END,
        "longest": 2,
    }
    with pytest.raises(ValueError, match=message):
        search_spans(**(call | changed))
