"""Sweeps: what is tried, and which points no other beats."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from btr.data.questions import Question
from btr.evaluate.sweep import Point, Setting, grid, mark_pareto, short_names, sweep
from btr.readers.bert import BertReader
from tiny_readers import make_reader


def point(score: float, speed: float, size: float) -> Point:
    return Point(Setting("r", "btr", 5), score, (score, score), speed, size)


def test_merging_is_tried_where_it_can_be():
    readers = [("a", "plain"), ("a", "btr"), ("b", "btr")]
    settings = grid(readers, [5, 10], [0, 0.2], [0, 0.1, 0.2], merges={"a": True, "b": False},
                    stores={})  # fmt: skip
    assert len(settings) == len(set(settings)) == 2 * (1 + 6 + 1)
    assert {s.mode for s in settings if s.intra or s.cross} == {"btr"}
    assert {s.reader for s in settings if s.intra or s.cross} == {"a"}
    assert len({s.label for s in settings}) == len(settings)


def test_readers_are_called_by_what_tells_them_apart():
    names = ["minilm", "runs/a/mini", "/runs/b/mini", "runs/c", ".", "./runs/c"]
    assert short_names(names) == {
        "minilm": "minilm",
        "runs/a/mini": "a/mini",
        "/runs/b/mini": "b/mini",
        "runs/c": "runs/c",
        ".": ".",
        "./runs/c": "./runs/c",
    }
    assert short_names(["/runs/b/mini", "/runs/b/mini"]) == {"/runs/b/mini": "mini"}
    merges = {"x/r": True, "y/r": True}
    shown = grid([("x/r", "btr"), ("y/r", "btr")], [5], [0], [0], merges=merges, stores={})
    assert [s.label for s in shown] == ["x/r btr, 5 passages", "y/r btr, 5 passages"]


def test_a_point_is_on_the_front_unless_another_beats_it():
    points = [point(80, 1, 0), point(78, 3, 50), point(77, 2, 60), point(70, 3, 700)]
    assert [p.pareto for p in mark_pareto(points)] == [True, True, False, False]
    twins = [point(80, 1, 0), point(80, 1, 0)]
    assert [p.pareto for p in mark_pareto(twins)] == [True, True]


def test_bytes_are_of_a_readers_own_tokens(tmp_path, tokenizer, passages):
    """Another reader that cuts passages sooner has fewer tokens, not more bytes in each."""
    (tmp_path / "r").mkdir()
    reader = make_reader(tmp_path / "r" / "btr", tokenizer, "btr", 2)
    short = BertReader(reader.network, tokenizer, replace(reader.config, passage_budget=8), "short")
    question = Question("1", "who?", ("Ada",), tuple(passages))
    points = sweep(
        {("a", "btr"): reader, ("b", "btr"): short},
        [Setting("a", "btr", 5), Setting("b", "btr", 5)],
        [question],
        lambda q: (list(q.contexts), None),
    )
    assert [point.bytes_per_token for point in points] == [32 / 8, 32 / 8]


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(values):
    points = mark_pareto([point(*v) for v in values])
    front = [p for p in points if p.pareto]
    assert front
    for p in points:
        assert p.pareto or any(
            f.score >= p.score
            and f.queries_per_s >= p.queries_per_s
            and f.bytes_per_token <= p.bytes_per_token
            for f in front
        )
