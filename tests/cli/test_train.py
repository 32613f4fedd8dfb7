"""``btr train``: three commands make a reader of either family; kills, processes, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stub_steps import train

from btr.readers.t5_checkpoint import load_network
from cli_lines import one_line
from forks import Worker, ended
from tiny_readers import tiny_model
from tiny_t5 import t5_tokenizer, tiny_t5

Run = Callable[..., tuple[int, str, str]]

SHORT = ["--epochs", "1", "--dev-share", "0.3", "--token-budget", "500", "--warmup", "2"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "bridges.jsonl"
    with path.open("w") as out:
        for n in range(30):
            king = ["Harald", "Olaf"][n % 2]
            contexts = [
                {"title": "Bridge", "text": f"The bridge {n} was built by king {king} of stone."},
                {"title": "Lake", "text": f"Lake {n} is salt."},
            ]
            record = {"question": f"who built {n}?", "answers": [king], "ctxs": contexts}
            out.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Plain pretrained models, as a user has them."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_model(tokenizer).bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    tiny_t5(t5_tokenizer(), wild=False).save_pretrained(folder / "t5")
    t5_tokenizer().save_pretrained(folder / "t5")
    return {"bert": folder / "bert", "t5": folder / "t5"}


@pytest.mark.parametrize(
    ("family", "layout", "rule"),
    [("bert", "3+2", "calibrated"), ("t5", "3+1", "calibrated"), ("bert", "3+2", "words")],
)
def test_three_commands_make_a_reader(
    run: Run, tmp_path, questions, bases, family: str, layout: str, rule: str
):
    reader, report = tmp_path / "mine", tmp_path / "report.json"
    common = ["-o", reader, "--data", questions, *SHORT, "--json", report]
    extra = ["--query-budget", "16", "--passage-budget", "60"] if family == "t5" else []
    for stage, options in (
        ("reader", ["--from", bases[family], *extra]),
        ("decompose", ["--layout", layout]),
        ("binarize", ["--rule", rule]),
    ):
        code, _, err = run("train", "--stage", stage, *common, *options)
        assert code == 0, err
        figures = json.loads(report.read_text())
        assert figures["stage"] == stage
        assert 0 <= figures["dev"]["bridges_f1"] <= 100
    assert {p.name for p in reader.iterdir()} == {"plain", "decomposed", "btr", "training"}
    # A step goes on from what it made, and may change the rule.
    code, _, err = run(
        "train", "--stage", "binarize", *common, "--from", reader / "btr", "--plain",
        reader / "plain", "--rule", "words", "-o", tmp_path / "further",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads((tmp_path / "further/btr/config.json").read_text())["btr"]["rule"] == "words"
    for mode in ("plain", "decomposed", "btr"):
        code, _, err = run("eval", "--reader", reader, "--data", questions, "--mode", mode,
                           "--limit", "3", "--json", report)  # fmt: skip
        assert code == 0, err
        assert json.loads(report.read_text())["family"] == family
    # Adapted to another task it still answers from a store made before.
    store, adapted = tmp_path / "store", tmp_path / "adapted"
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        '{"id": "b", "title": "Bridge", "text": "The bridge 1 was built by king Olaf."}'
    )
    code, _, err = run("index", corpus, "-o", store, "--reader", reader)
    assert code == 0, err
    code, _, err = run("compress", store)
    assert code == 0, err
    code, _, err = run("train", "--stage", "adapt", "-o", adapted, "--from", reader, *common[2:],
                       "--store", store)  # fmt: skip
    assert code == 0, err
    code, _, err = run("ask", store, "who built it?", "--reader", adapted)
    assert code == 0, err


def test_classes_and_multiple_choice_are_scored_by_accuracy(run: Run, tmp_path, bases):
    passage = {"title": "Bridge", "text": "The bridge was built by king Olaf of stone."}
    claims, exam = tmp_path / "fever.jsonl", tmp_path / "mmlu.jsonl"
    with claims.open("w") as out:
        for n in range(12):
            label = ["SUPPORTS", "REFUTES"][n % 2]
            record = {"question": f"The bridge {n} is of stone", "answers": [label]}
            out.write(json.dumps(record | {"ctxs": [passage]}) + "\n")
    with exam.open("w") as out:
        for n in range(12):
            options = {"A": "stone", "B": "salt", "C": "wood", "D": "snow"}
            record = {"question": f"Of what is bridge {n}?", "answers": ["ABCD"[n % 4]],
                      "options": options, "subject": ["stone", "water"][n % 2]}  # fmt: skip
            out.write(json.dumps(record | {"ctxs": [passage]}) + "\n")
    reader, report = tmp_path / "mine", tmp_path / "report.json"
    code, _, err = run("train", "--stage", "reader", "-o", reader, "--from", bases["t5"],
                       "--data", claims, "--data", exam, *SHORT, "--query-budget", "60",
                       "--passage-budget", "60", "--dev", claims)  # fmt: skip
    assert code == 0, err
    words = ["eval", "--reader", reader, "--mode", "plain", "--json", report]
    code, out, err = run(*words, "--data", claims, "--classes", "--predictions", tmp_path / "p")
    assert code == 0, err
    figures = json.loads(report.read_text())
    assert (figures["n"], figures["em"], figures["f1"]) == (12, None, None)
    assert f"accuracy {figures['accuracy']}" in out
    said = [json.loads(line)["answer"] for line in (tmp_path / "p").read_text().splitlines()]
    assert set(said) <= {"SUPPORTS", "REFUTES"}
    right = sum(a == ["SUPPORTS", "REFUTES"][n % 2] for n, a in enumerate(said))
    assert figures["accuracy"] == round(100 * right / 12, 2)
    code, out, err = run(*words, "--data", exam)
    assert code == 0, err
    figures = json.loads(report.read_text())
    assert figures["subjects"].keys() == {"stone", "water"}
    assert figures["accuracy"] == pytest.approx(sum(figures["subjects"].values()) / 2, abs=0.01)
    assert figures["recall"] is None
    for subject, share in figures["subjects"].items():
        low, high = figures["subject_intervals"][subject]
        assert low <= share <= high
        assert f"  {subject}: {share} ({low} to {high})" in out
    code, _, err = run(*words, "--data", questions_without_classes(tmp_path), "--classes")
    assert (code, "are no classes" in one_line(err)) == (3, True)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_multiple_choice_without_passages_is_trained_on_and_read(
    run: Run, tmp_path, bases, family: str
):
    exam, report = tmp_path / "mmlu.jsonl", tmp_path / "report.json"
    with exam.open("w") as out:
        for n in range(24):
            options = ["snow", "salt", "wood", "stone"]
            record = {"question": f"what {n}?", "choices": options, "answer": n % 2, "ctxs": []}
            out.write(json.dumps(record) + "\n")
    reader = tmp_path / "mine"
    # The paper's settings of MMLU are those of T5 base.
    options = {"bert": ["--classes"], "t5": ["--preset", "mmlu", "--steps", "2"]}[family]
    code, _, err = run("train", "--stage", "reader", "-o", reader, "--from", bases[family],
                       "--data", exam, "--dev-share", "0.3", *options)  # fmt: skip
    assert code == 0, err
    code, out, err = run("eval", "--reader", reader, "--mode", "plain", "--data", exam, "--limit",
                         "20", "--json", report)  # fmt: skip
    assert code == 0, err
    figures = json.loads(report.read_text())
    assert (figures["n"], figures["skipped_without_passages"]) == (20, 0)
    assert figures["accuracy"] is not None


def test_an_extractive_reader_learns_classes(run: Run, tmp_path, bases):
    claims = tmp_path / "claims.jsonl"
    with claims.open("w") as out:
        for n in range(40):
            king = ["Olaf", "Harald"][n % 2]
            passage = {"title": "Bridge", "text": f"The bridge {n} was built by king {king}."}
            record = {"claim": f"Olaf built {n}", "label": ["SUPPORTS", "REFUTES"][n % 2]}
            out.write(json.dumps(record | {"ctxs": [passage]}) + "\n")
    reader, report = tmp_path / "mine", tmp_path / "report.json"
    common = ["-o", reader, "--data", claims, *SHORT, "--classes", "--dev", claims]
    for options in (
        ["--stage", "reader", "--from", bases["bert"], "--epochs", "15", "--lr", "5e-3"],
        ["--stage", "decompose", "--layout", "2+2"],
        ["--stage", "binarize"],
        ["--stage", "adapt", "--from", reader, "-o", tmp_path / "adapted"],
    ):
        code, _, err = run("train", *common, *options)
        assert code == 0, err
    for folder, mode in ((reader, "plain"), (reader, "btr"), (tmp_path / "adapted", "btr")):
        code, _, err = run("eval", "--reader", folder, "--data", claims, "--classes",
                           "--mode", mode, "--json", report)  # fmt: skip
        assert code == 0, err
        figures = json.loads(report.read_text())
        assert (figures["n"], figures["em"]) == (40, None)
        if mode == "plain":
            assert figures["accuracy"] > 90
    log = (reader / "training" / "binarize" / "log.jsonl").read_text()
    assert {"task", "answer", "state", "recovery"} <= json.loads(log.splitlines()[0]).keys()
    code, _, err = run("train", "--stage", "adapt", "-o", tmp_path / "x", "--data", claims,
                       "--from", reader, *SHORT)  # fmt: skip
    assert (code, "give --classes" in one_line(err)) == (2, True)


def questions_without_classes(folder: Path) -> Path:
    path = folder / "one.jsonl"
    path.write_text('{"question": "q", "answers": ["a"], "ctxs": [{"text": "a b"}]}\n')
    return path


def test_a_network_pretrained_with_bits_becomes_a_reader(run: Run, tmp_path, questions, bases):
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(12):
        words = f"The bridge {n} was built by king Olaf of stone, and the lake is salt. " * 6
        (texts / f"{n}.txt").write_text(words)
    reader = tmp_path / "mine"
    words = ["pretrain", texts, "-o", reader, "--from", bases["t5"], "--scratch",
             "--layout", "3+1", "--query-budget", "16", "--passage-budget", "40",
             "--dev-share", "0.3", "--token-budget", "300", "--warmup", "2",
             "--relative-lr", "--lr", "1e-3", "--average", "0.5",
             "--json", tmp_path / "report.json"]  # fmt: skip
    code, _, err = run(*words)
    assert code == 0, err
    told = (texts / "3.txt").read_text()
    (texts / "3.txt").write_text(told.replace("stone", "wood"))
    code, _, err = run(*words)
    assert (code, "another text sha256" in one_line(err)) == (5, True), err
    (texts / "3.txt").write_text(told)
    code, _, err = run(*words)
    assert code == 0, err
    assert json.loads((tmp_path / "report.json").read_text())["dev"]["nll"] > 0
    code, _, err = run("train", "--stage", "binarize", "-o", reader, "--from", reader,
                       "--data", questions, *SHORT, "--answer-weight", "0",
                       "--state-weight", "0")  # fmt: skip
    assert code == 0, err
    code, _, err = run("eval", "--reader", reader, "--data", questions, "--limit", "2")
    assert code == 0, err
    for options, message in (
        (["--layout", "9+1"], "sum to 4, found 9+1"),
        (["--layout", "3+3"], "sum to 4, found 3+3"),
        ([], "sum to 4, found nothing"),
        (["--mode", "plain", "--layout", "3+1"], "a plain network has no layout"),
    ):
        code, _, err = run("pretrain", texts, "-o", tmp_path / "x", "--from", bases["t5"], *options)
        assert (code, message in one_line(err)) == (2, True), err


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "btr", "train", *map(str, words)]


@pytest.mark.parametrize(("family", "layout"), [("bert", "3+2"), ("t5", "3+1")])
def test_every_step_killed_and_run_again_gives_the_same_checkpoint(
    tmp_path, questions, bases, family: str, layout: str
):
    """Killed once it has logged something, which is after its first state was begun or later."""
    common = ["--data", questions, "--steps", "6", "--dev-share", "0.1", "--token-budget", "200",
              "--warmup", "2", "--evaluate-every", "2"]  # fmt: skip
    whole = tmp_path / "whole"
    for stage, mode, start, options in (
        ("reader", "plain", bases[family], []),
        ("decompose", "decomposed", whole / "plain", ["--layout", layout]),
        ("binarize", "btr", whole / "decomposed", []),
        ("adapt", "btr", whole / "btr", []),
    ):
        words = ["--stage", stage, "--from", start, *common, *options]
        if stage != "reader":
            words += ["--plain", whole / "plain"]
        made = whole if stage != "adapt" else tmp_path / "adapted"
        assert ended(Worker(train, list(map(str, ["-o", made, *words])))) == [0]
        cut = tmp_path / f"cut-{stage}"
        worker = Worker(train, list(map(str, ["-o", cut, *words])))
        worker.go()
        log, seen = cut / "training" / stage / "log.jsonl", 2
        while not log.exists() or log.read_bytes().count(b"\n") < seen:
            time.sleep(0.002)
        assert worker.kill(), "it ended before it was killed"
        assert ended(Worker(train, list(map(str, ["-o", cut, *words])))) == [0]
        assert digest(made / mode) == digest(cut / mode)
        assert log.read_bytes().count(b"\n") > seen


def test_only_the_same_step_goes_on(run: Run, tmp_path, questions, bases):
    reader, data = tmp_path / "mine", tmp_path / "q.jsonl"
    data.write_text(questions.read_text())
    words = ["train", "--stage", "reader", "-o", reader, "--from", bases["bert"], *SHORT]
    code, _, err = run(*words, "--data", data)
    assert code == 0, err
    before = {p: p.read_bytes() for p in reader.rglob("*") if p.is_file()}
    for options, message in (
        (["--data", questions], "data sources"),
        (["--data", data, "--dropout", "0.2"], "another dropout"),
        (["--data", data, "--precision", "fp32"], '"bf16", found "fp32"'),
        (["--data", data, "--lr", "0.1"], "another lr"),
        (["--data", data, "--negative-share", "0.5"], "data negative_share"),
    ):
        code, _, err = run(*words, *options)
        assert (code, message in one_line(err)) == (5, True), err
    data.write_text(questions.read_text().replace("Harald", "Haakon"))
    code, _, err = run(*words, "--data", data)
    assert (code, f"another sha256 {data}" in one_line(err)) == (5, True), err
    data.write_text(questions.read_text())
    code, _, err = run(*words, "--data", data)
    assert code == 0, err
    assert {p: p.read_bytes() for p in reader.rglob("*") if p.is_file()} == before


def test_two_processes_train_as_one_with_twice_the_batches(tmp_path, questions, bases):
    """Gradients are averaged: each process takes every other batch, and the weights are those of
    one process that takes both."""
    words = ["--stage", "reader", "--from", bases["t5"], "--data", questions, *SHORT, "--dropout",
             "0", "--precision", "fp32", "--lr", "0.01", "--steps", "2"]  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                "2", *command("-o", tmp_path / "two", *words)[1:]]  # fmt: skip
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "1",
    }
    done = subprocess.run(torchrun, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run(command("-o", tmp_path / "one", *words, "--accumulate", "2"), check=True,
                   capture_output=True, env=env)  # fmt: skip
    states = []
    for name in ("two", "one"):
        work = tmp_path / name / "training" / "reader"
        states.append(load_file(work / "state" / "state.safetensors"))
        assert json.loads((work / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    record = json.loads((tmp_path / "two/training/reader/state/state.json").read_text())
    assert record["settings"]["processes"] == 2
    began = load_network(bases["t5"])[0].state_dict()
    moved = 0
    for name, weight in states[1].items():
        # Sums in another order, and Adam divides by the root of a small square in its first steps.
        torch.testing.assert_close(states[0][name], weight, rtol=1e-3, atol=1e-4)
        if name.startswith("master."):
            moved += not torch.equal(weight, began[name.removeprefix("master.network.")])
    assert moved > 20


def test_tensorboard_gets_the_losses(run: Run, tmp_path, questions, bases):
    code, _, err = run("train", "--stage", "reader", "--from", bases["bert"], "-o", tmp_path / "r",
                       "--data", questions, *SHORT, "--track", "tensorboard")  # fmt: skip
    assert code == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "r" / "training" / "reader" / "btr"))
    events.Reload()
    assert {"task", "dev.score"} <= set(events.Tags()["scalars"])


def test_a_loss_that_is_not_finite_names_its_questions(run: Run, tmp_path, questions, bases):
    for family in ("bert", "t5"):
        reader = tmp_path / family
        code, _, err = run("train", "--stage", "reader", "-o", reader, "--from", bases[family],
                           "--data", questions, *SHORT, "--token-budget", "60",
                           "--lr", "1e30")  # fmt: skip
        assert code == 3, err
        assert "is not finite: 5 times up to step " in one_line(err)
        assert "found bridges: question " in one_line(err)
        log = (reader / "training" / "reader" / "log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["not_finite"].startswith("bridges: question ")
        assert not (reader / "plain").exists()


def test_presets_are_the_papers(run: Run, tmp_path, questions, bases):
    reader = tmp_path / "mine"
    code, _, err = run("train", "--stage", "reader", "-o", reader, "--from", bases["t5"],
                       "--data", questions, "--dev-share", "0.3", "--preset", "triviaqa",
                       "--steps", "2")  # fmt: skip
    assert code == 0, err
    settings = json.loads((reader / "training" / "reader" / "settings.json").read_text())
    assert settings["lr"] == 6e-5
    assert settings["warmup"] == 200
    assert settings["data"]["passages"] == 40
    assert settings["token_budget"] == 8 * 40 * 320
    budgets = [settings["reader"][f"{name}_budget"] for name in ("query", "passage", "answer")]
    assert budgets == [64, 256, 32]
    for stage, more, losses in (
        ("decompose", ["--layout", "2+2"], [1.0, 0.0, 0.0]),
        ("binarize", [], [0.0, 0.0, 1.0]),
        ("binarize", ["--answer-weight", "0.5"], [0.0, 0.5, 1.0]),  # what is given counts
    ):
        own = tmp_path / "given" if "--answer-weight" in more else reader
        start = ["--from", reader / "decomposed", "--plain", reader / "plain"] * (own != reader)
        code, _, err = run("train", "--stage", stage, "-o", own, "--data", questions, *start, *more,
                           "--dev-share", "0.3", "--preset", "triviaqa", "--steps", "2",
                           )  # fmt: skip
        assert code == 0, err
        settings = json.loads((own / "training" / stage / "settings.json").read_text())
        weights = ("state_weight", "answer_weight", "recovery_weight")
        assert [settings[name] for name in weights] == losses


def test_bad_input_is_one_line(run: Run, tmp_path, questions, bases):
    reader = tmp_path / "mine"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q", "answers": ["a"], "ctxs": [{"text": "a b"}]}\n{"q": 1}\n')
    base = ["--data", questions, "-o", reader, *SHORT]
    start = ["--from", bases["t5"]]
    for words, status, message in (
        (["--stage", "reader", *base], 2, "give --from"),
        (["--stage", "decompose", *base], 2, "step decompose finds no checkpoint"),
        (["--stage", "decompose", *base, *start, "--layout", "4-3"], 2, "LOWER+JOINT"),
        (["--stage", "reader", "--data", f"{questions}=7", "-o", reader, *start], 2, "bad share"),
        (["--stage", "reader", "--data", bad, "-o", reader, *start], 3, "bad.jsonl, line 2"),
        (["--stage", "reader", *base, "--from", bases["bert"], "--recompute"], 2, "--recompute"),
        (["--stage", "reader", *base, "--from", bases["bert"], "--preset", "nq"], 2, "--preset"),
        (["--stage", "reader", *base, *start, "--layout", "2+2"], 2, "--layout is for step"),
        (["--stage", "reader", *base, *start, "--task-weight", "0"], 2, "is switched off"),
        (["--stage", "reader", *base, *start, "--positives", "2"], 2, "positives"),
        (["--stage", "reader", *base, *start, "--score-on", "nq"], 2, "score on: nq"),
        (["--stage", "binarize", *base, *start, "--query-budget", "8"], 2, "step binarize"),
        (["--stage", "reader", *base, "--from", tmp_path / "none"], 3, "none"),
    ):
        code, _, err = run("train", *words)
        assert code == status, (words, err)
        assert message in one_line(err), (words, err)
    assert not (reader / "plain").exists()
