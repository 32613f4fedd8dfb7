"""Confidence that is the probability of being right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from btr.evaluate.calibration import calibration_error, fit_calibration, main
from btr.readers.t5 import T5Reader
from cli_lines import one_line
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
    assert "only readers that generate" in one_line(capsys.readouterr().err)
