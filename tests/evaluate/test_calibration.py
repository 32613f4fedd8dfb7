"""Confidence that is the probability of being right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from btr.errors import CorruptError
from btr.evaluate.calibration import (
    REFUSED,
    calibration_error,
    fit_abstention,
    fit_calibration,
    main,
)
from btr.readers.bert import BertReader
from btr.readers.t5 import T5Reader
from cli_lines import one_line
from tiny_readers import make_reader
from tiny_t5 import make_t5, t5_tokenizer


def sample(count: int, slope: float, intercept: float) -> tuple[list[float], list[float]]:
    draw = np.random.default_rng(0)
    x = -draw.exponential(2.0, count)
    right = draw.random(count) < 1 / (1 + np.exp(-(slope * x + intercept)))
    return x.tolist(), right.astype(float).tolist()


def test_the_fit_finds_what_made_the_sample() -> None:
    x, right = sample(20_000, 0.7, 1.2)
    slope, intercept = fit_calibration(x, right)
    assert slope == pytest.approx(0.7, abs=0.08)
    assert intercept == pytest.approx(1.2, abs=0.12)
    calibrated = [1 / (1 + math.exp(-(slope * v + intercept))) for v in x]
    assert calibration_error(calibrated, right) < 0.02
    assert calibration_error([math.exp(v) for v in x], right) > 0.1


@pytest.mark.parametrize("right", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
def test_separable_answers_stay_finite(right: list[float]) -> None:
    assert all(map(math.isfinite, fit_calibration([-0.1, -0.2, -3.0], right)))


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match="cannot calibrate"):
        fit_calibration([-1.0], [1.0])
    with pytest.raises(ValueError, match="cannot calibrate"):
        fit_calibration([-1.0, -2.0], [1.0])
    with pytest.raises(ValueError, match="no questions"):
        fit_abstention([], [])


def test_abstention_refuses_its_share_of_answerable_questions() -> None:
    draw = np.random.default_rng(0)
    passages = draw.integers(2, 40, 4000).tolist()
    odds = [float(x) * math.log(n) for x, n in zip(draw.normal(3, 1, 4000), passages, strict=True)]
    weight = fit_abstention(odds, passages)
    refused = [x < weight * math.log(n) for x, n in zip(odds, passages, strict=True)]
    assert np.mean(refused) == pytest.approx(REFUSED, abs=0.002)
    assert fit_abstention([-5.0, -6.0], [4, 4]) == 0.0  # never below what training gave


def test_an_extractive_reader_abstains_more_with_more_passages(
    tmp_path, tokenizer, passages, capsys
) -> None:
    folder = tmp_path / "r"
    reader = make_reader(folder, tokenizer, "btr", 2)
    before = reader.read("who?", passages)
    one = reader.read("who?", passages[:1])
    lines = [
        {"no_answer": 1 / (1 + math.exp(x)), "passages": n, "found": found}
        for x, n, found in [(4.0, 4, 1), (8.0, 4, 2), (9.0, 4, 3), (1.0, 4, 0), (-9.0, 1, 1)]
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(folder), str(tmp_path / "p.jsonl")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["answerable"] == 3  # one passage tells nothing of their number
    assert report["abstention"] == pytest.approx(np.quantile([4, 8, 9], REFUSED) / math.log(4))
    assert report["refused_unanswerable_before"] == 0.0
    assert report["refused_unanswerable"] == 1.0
    fitted = BertReader.from_pretrained(folder)
    after = fitted.read("who?", passages)
    weight = report["abstention"]
    odds = math.log(before.no_answer / (1 - before.no_answer)) + weight * math.log(len(passages))
    assert after.no_answer == pytest.approx(1 / (1 + math.exp(-odds)))
    assert [a.text for a in after.answers] == [a.text for a in before.answers]
    total = sum(a.probability for a in after.answers) / sum(a.probability for a in before.answers)
    assert total == pytest.approx((1 - after.no_answer) / (1 - before.no_answer))
    assert fitted.read("who?", passages[:1]).no_answer == pytest.approx(one.no_answer)
    assert fitted.fingerprint == reader.fingerprint  # a store stays good

    # What the fitted reader says, fitted on again, gives the same number.
    for line in lines:
        x = math.log(1 / line["no_answer"] - 1) - weight * math.log(line["passages"])
        line["no_answer"] = 1 / (1 + math.exp(x))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main([str(folder), str(tmp_path / "p.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["abstention"] == pytest.approx(weight)


@pytest.mark.parametrize("value", [-1, "x", None, float("inf"), float("nan")])
def test_an_impossible_abstention_is_refused(tmp_path, tokenizer, value) -> None:
    make_reader(tmp_path / "r", tokenizer, "plain", 0)
    (tmp_path / "r" / "digests.json").unlink()
    config = tmp_path / "r" / "config.json"
    described = json.loads(config.read_text())
    described["btr"]["abstention"] = value
    config.write_text(json.dumps(described))
    with pytest.raises(CorruptError, match="impossible abstention"):
        BertReader.from_pretrained(tmp_path / "r")


def write(path: Path, confidences: list[float], right: list[float]) -> Path:
    lines = [{"probability": c, "em": r} for c, r in zip(confidences, right, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_checkpoint_is_calibrated_and_again(tmp_path, passages, capsys) -> None:
    reader = make_t5(tmp_path / "r", t5_tokenizer(), "btr", 2)
    before = reader.read("who?", passages)
    x, right = sample(500, 0.5, 0.5)
    predictions = write(tmp_path / "p.jsonl", [math.exp(v) for v in x], right)
    assert main([str(tmp_path / "r"), str(predictions)]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["error_after"] < first["error_before"]
    calibrated = T5Reader.from_pretrained(tmp_path / "r")
    after = calibrated.read("who?", passages)
    log_probability = math.log(before.answers[0].probability)
    odds = first["slope"] * log_probability + first["intercept"]
    assert after.answers[0].probability == pytest.approx(1 / (1 + math.exp(-odds)))
    assert after.answers[0].text == before.answers[0].text
    assert after.no_answer == pytest.approx(1 - after.answers[0].probability)
    # Its own confidences, calibrated on again, give the same numbers.
    shown = [1 / (1 + math.exp(-(first["slope"] * v + first["intercept"]))) for v in x]
    assert main([str(tmp_path / "r"), str(write(tmp_path / "q.jsonl", shown, right))]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["slope"] == pytest.approx(first["slope"], rel=1e-4)


def test_bad_input_is_one_line(tmp_path, capsys) -> None:
    make_t5(tmp_path / "r", t5_tokenizer(), "plain", 0)
    (tmp_path / "bad.jsonl").write_text('{"probability": "x"}\n')
    (tmp_path / "few.jsonl").write_text('{"probability": 0.5, "em": 1}\n')
    for name, text in (("bad", "bad line"), ("few", "too few"), ("none", "")):
        assert main([str(tmp_path / "r"), str(tmp_path / f"{name}.jsonl")]) in (2, 3)
        assert text in one_line(capsys.readouterr().err)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"model_type": "bert"}')
    assert main([str(tmp_path / "x"), str(tmp_path / "few.jsonl")]) == 3
    assert "no reader of btr" in one_line(capsys.readouterr().err)
