"""What each command prints and reports when all is well."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from btr.machine import default_dtype
from cli_lines import one_line
from tiny_readers import make_reader

Run = Callable[..., tuple[int, str, str]]
COMMANDS = ("demo", "index", "ask", "info", "verify", "eval", "bench", "models")


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from btr.cli.main import main; status = main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'faiss', 'tantivy', 'huggingface_hub'}; "
        "print('heavy:', *(heavy & sys.modules.keys())); sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "heavy:"
    assert all(name in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"btr {command}" in out
    assert "--json" in out


def test_no_command_shows_help(run: Run) -> None:
    status, out, _ = run()
    assert (status, "Commands" in out) == (0, True)


def test_index_reports_figures(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "new.btr"
    status, out, err = run(
        "index", corpus, "-o", store, "--reader", tiny, "--dtype", "fp32", "--json",
        tmp_path / "r.json",
    )  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert (status, err) == (0, "")
    assert out.startswith(f"{store}: 4 passages, ")
    assert "passages a second" in out
    assert "peak memory" in out
    assert report["passages"] == 4
    assert report["counts"]["read"] == report["counts"]["stored"] == 4
    assert report["reader"] == str(tiny)
    assert {"tokens", "state_bytes_per_token", "passages_per_s", "peak_rss_mb"} <= report.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.btr", "r.json"]


def test_index_names_what_it_left_out(run: Run, tiny: Path, tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "song.mp3").write_bytes(b"x")
    (folder / "a.jsonl").write_text('{"id": "1", "text": "It is long.", "mood": 1}\n' * 2)
    status, _, err = run("index", folder, "-o", tmp_path / "s.btr", "--reader", tiny)
    assert status == 0
    assert "skipped song.mp3: type '.mp3' is not read" in err
    assert "fields that are not used: mood (2)" in err
    assert "1 records given twice were stored once" in err


def test_info_has_exactly_the_stable_keys(run: Run, whole_store: Path) -> None:
    status, out, _ = run("info", whole_store, "--json", "-")
    report = json.loads(out)
    assert status == 0
    assert list(report) == [
        "passages", "tokens", "dim", "split_layer", "fingerprint", "bytes",
        "state_bytes_per_token", "ratio_to_continuous", "removed", "generation", "compression",
    ]  # fmt: skip
    assert list(report["bytes"]) == [
        "bits", "scales", "refs", "codebook", "index", "text", "manifest"
    ]  # fmt: skip
    on_disk = sum(p.stat().st_size for p in whole_store.rglob("*") if p.is_file())
    assert sum(report["bytes"].values()) == on_disk
    assert (report["passages"], report["dim"], report["split_layer"]) == (4, 32, 2)
    per_token = report["bytes"]["bits"] / report["tokens"]
    assert report["state_bytes_per_token"] == pytest.approx(per_token, abs=1e-3)
    assert report["ratio_to_continuous"] == pytest.approx(4 * 32 / per_token, abs=1e-3)


def test_info_for_people(run: Run, whole_store: Path, tiny: Path) -> None:
    status, out, _ = run("info", whole_store)
    assert status == 0
    assert f"{tiny}, btr, split after layer 2" in out


def test_verify_finds_a_sound_store_sound(run: Run, whole_store: Path) -> None:
    status, out, _ = run("verify", whole_store, "--json", "-")
    report = json.loads(out)
    assert (status, report["ok"], report["damage"], report["passages"]) == (0, True, [], 4)
    assert run("verify", whole_store)[1].startswith(f"{whole_store}: sound; 4 passages")


@pytest.mark.parametrize("mode", ["btr", "decomposed", "plain"])
def test_ask_gives_a_span_of_a_document(
    run: Run, whole_store: Path, corpus: Path, mode: str
) -> None:
    status, out, _ = run(
        "ask", whole_store, "where do birds rest?", "--mode", mode, "--top", "2", "--json", "-"
    )
    reply = json.loads(out)
    assert status == 0
    assert len(reply["candidates"]) == 2
    for candidate in reply["candidates"]:
        passage = candidate["passage"]
        start = candidate["start"] - passage["start"]
        assert passage["text"][start : start + len(candidate["text"])] == candidate["text"]
        assert candidate["text"] in candidate["sentence"]
        if candidate["document"] == "rivers.txt":
            text = (corpus / "rivers.txt").read_text()
            assert text[candidate["start"] : candidate["end"]] == candidate["text"]
    assert reply["abstained"] is (reply["answer"] is None)
    assert {"retrieve", "fetch", "joint"} <= reply["stages_ms"].keys()


def test_ask_reads_as_many_passages_as_asked(run: Run, whole_store: Path) -> None:
    _, out, _ = run("ask", whole_store, "lake", "--passages", "2", "--json", "-")
    assert json.loads(out)["passages_read"] == 2


def test_ask_for_people(run: Run, whole_store: Path) -> None:
    status, out, _ = run("ask", whole_store, "where do birds rest?")
    assert status == 0
    assert "other candidates" in out
    assert ", characters " in out
    assert " ms: retrieve " in out


def test_models_lists_readers_and_encoders(run: Run) -> None:
    status, out, _ = run("models", "--json", "-")
    report = json.loads(out)
    assert status == 0
    assert [r["name"] for r in report["readers"]] == ["minilm", "t5-mini"]
    assert report["encoders"][0]["present"] is True
    assert "Hugging Face Hub id" in run("models")[1]


@pytest.mark.parametrize(
    ("flags", "states"),
    [
        ((), "encoded now"),
        (("--store", "STORE"), "stored"),
        (("--store", "STORE", "--retrieve"), "stored"),
        (("--store", "STORE", "--retrieved", "RUN"), "stored"),
        (("--store", "STORE", "--mode", "plain"), "none"),
        (("--store", "STORE", "--retrieve", "--mode", "decomposed"), "encoded now"),
    ],
)
def test_eval_report(
    run: Run, whole_store: Path, tiny: Path, questions: Path, tmp_path: Path,
    flags: tuple[str, ...], states: str,
) -> None:  # fmt: skip
    listed = tmp_path / "run.jsonl"
    listed.write_text('{"id": "1", "ctx_ids": ["q1"]}\n{"id": "2", "ctx_ids": ["q2", "q1"]}\n')
    places = {"STORE": whole_store, "RUN": listed}
    answers = tmp_path / "answers.jsonl"
    status, out, _ = run(
        "eval", "--reader", tiny, "--data", questions, "--json", "-", "--predictions", answers,
        *(places.get(flag, flag) for flag in flags),
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0
    assert {
        "task", "reader", "family", "mode", "n", "em", "f1", "accuracy", "queries_per_s",
        "cpu_s_per_correct", "passages_per_query", "settings",
    } <= report.keys()  # fmt: skip
    assert (report["task"], report["n"], report["family"]) == ("lakes", 2, "bert")
    assert report["settings"]["states"] == states
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p95"]
    assert [json.loads(line)["id"] for line in answers.read_text().splitlines()] == ["1", "2"]


def test_eval_goes_on_and_says_what_is_kept(
    run: Run, tiny: Path, questions: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    answers, plain = tmp_path / "answers.jsonl", tmp_path / "plain.json"
    words = ("eval", "--reader", tiny, "--data", questions)
    assert run(*words, "--mode", "plain", "--json", plain)[0] == 0
    first = json.loads(run(*words, "--json", "-", "--predictions", answers)[1])
    assert first["recall"] == {"1": 100.0, "5": 100.0, "20": 100.0}
    whole = answers.read_text()
    # Stopped in the middle of the second line.
    line = whole.index("\n") + 1
    answers.write_text(whole[:line].replace('"Who', '"who') + whole[line : line + 20])
    again = json.loads(run(*words, "--json", "-", "--predictions", answers, "--resume")[1])
    assert (again["n"], again["f1"]) == (first["n"], first["f1"])
    assert answers.read_text().startswith(whole[:line].replace('"Who', '"who'))
    assert [json.loads(text)["id"] for text in answers.read_text().splitlines()] == ["1", "2"]

    # Nothing that another reader, mode or option made is gone on from, and it stays as it is.
    went_on = answers.read_bytes()
    make_reader(tmp_path / "other" / "btr", tokenizer, "btr", 2, seed=1)
    other_dtype = "fp32" if default_dtype() == "bf16" else "bf16"
    for flags, message in (
        (("--mode", "decomposed"), "another mode than the run has that is to go on"),
        (("--passages", "1"), "another passages"),
        (("--reader", tiny / "btr", "--dtype", other_dtype), "another dtype"),
        (("--reader", tmp_path / "other"), "another reader sha256"),
    ):
        found, _, err = run(*words, *flags, "--predictions", answers, "--resume")
        assert (found, message in one_line(err)) == (5, True), err
    other = tmp_path / "other.jsonl"
    other.write_text(questions.read_text().replace("queen", "king"))
    found, _, err = run("eval", "--reader", tiny, "--data", other, "--predictions", answers,
                        "--resume")  # fmt: skip
    assert (found, "another data" in one_line(err)) == (5, True), err
    assert answers.read_bytes() == went_on
    (tmp_path / "answers.jsonl.settings.json").unlink()
    found, _, err = run(*words, "--predictions", answers, "--resume")
    assert (found, "nothing says what made" in one_line(err)) == (3, True), err

    status, _, err = run(*words, "--limit", "1", "--against", plain)
    assert (status, "same questions" in one_line(err)) == (2, True)
    report = json.loads(plain.read_text())
    plain.write_text(json.dumps(report | {"f1": 50.0}))
    kept = json.loads(run(*words, "--json", "-", "--against", plain)[1])
    assert kept["kept"] == pytest.approx(2 * kept["f1"], abs=0.01)
    for flags, status, message in (
        (("--resume",), 2, "--predictions"),
        (("--against", tmp_path / "none.json"), 3, "cannot be read"),
        (("--classes",), 2, "cannot choose"),
    ):
        found, _, err = run(*words, *flags)
        assert (found, message in one_line(err)) == (status, True), err


def test_a_run_that_goes_on_loses_no_prediction_to_a_kill(
    run: Run, tiny: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers.jsonl"
    words = ("eval", "--reader", tiny, "--data", questions, "--predictions", answers)
    assert run(*words)[0] == 0
    whole = answers.read_bytes()
    # Cut in the middle of a character.
    answers.write_bytes(whole + '{"id": "é'.encode()[:-1])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("btr.evaluate.run.evaluate", killed)
    assert run(*words, "--resume")[0] == 130
    assert answers.read_bytes() == whole


def test_sweep_draws_every_setting(
    run: Run, whole_store: Path, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    words = ("sweep", "--reader", tiny, "--data", questions, "--passages", "1,2")
    for flags in ((), ("--store", whole_store)):
        output = tmp_path / f"out{len(flags)}"
        status, out, err = run(*words, "-o", output, *flags)
        assert status == 0, err
        report = json.loads((output / "sweep.json").read_text())
        modes = [(p["mode"], p["passages"]) for p in report["points"]]
        assert modes == [(m, n) for m in ("plain", "decomposed", "btr") for n in (1, 2)]
        assert any(p["pareto"] for p in report["points"])
        sizes = {p["mode"]: p["bytes_per_token"] for p in report["points"]}
        assert sizes["plain"] == 0
        assert sizes["decomposed"] == 16 * sizes["btr"]
        assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
        assert "on the front" in out
    for flags, message in (
        (("--passages", "0"), "bad --passages"),
        (("--intra", "x"), "bad --intra"),
        (("--modes", "btr,fast"), "no such mode"),
    ):
        status, _, err = run(*words, "-o", tmp_path / "out", *flags)
        assert (status, message in one_line(err)) == (2, True), err


def test_sweep_compares_what_stores_have(
    run: Run, whole_store: Path, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    shutil.copytree(whole_store, small)
    assert run("compress", small, "--ratio", "0")[0] == 0
    words = ("sweep", "--reader", tiny, "--data", questions, "--passages", "2",
             "-o", tmp_path / "o", "--store", whole_store)  # fmt: skip
    status, out, err = run(*words, "--states", whole_store, "--states", small)
    assert status == 0, err
    assert f"2 passages, {small.name}" in " ".join(out.split())
    report = json.loads((tmp_path / "o" / "sweep.json").read_text())
    points = {(p["mode"], p["store"]): p for p in report["points"]}
    assert list(points) == [
        ("plain", ""), ("decomposed", ""), ("btr", ""), ("btr", whole_store.name),
        ("btr", small.name),
    ]  # fmt: skip
    assert points["btr", ""]["score"] == points["btr", whole_store.name]["score"]
    for store in (whole_store, small):
        told = json.loads(run("info", store, "--json", "-")[1])
        found = points["btr", store.name]["bytes_per_token"]
        assert found == pytest.approx(told["state_bytes_per_token"], abs=0.01)
    status, _, err = run(*words, "--modes", "plain", "--states", small)
    assert (status, "a plain reader reads no" in one_line(err)) == (2, True), err
    status, _, err = run(*words, "--modes", "decomposed", "--states", small)
    assert (status, "made by another reader: mode differs" in one_line(err)) == (5, True), err


def test_eval_finds_the_pieces_of_a_passage_that_the_store_has_cut(
    run: Run, tiny: Path, tmp_path: Path
) -> None:
    text = " ".join(f"The bridge number {n} was built by king Harald." for n in range(60))
    record = {"id": "long", "title": "Bridges", "text": text}
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    question = {"id": "1", "question": "who?", "answers": ["Harald"], "ctxs": [record]}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    store = tmp_path / "s.btr"
    assert run("index", tmp_path / "in.jsonl", "-o", store, "--reader", tiny)[0] == 0
    words = ("eval", "--reader", tiny, "--data", tmp_path / "q.jsonl", "--store", store)
    status, out, _ = run(*words, "--json", "-")
    assert status == 0
    assert json.loads(out)["passages_per_query"] > 2
    question["ctxs"][0]["id"] = "other"
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    status, _, err = run(*words)
    assert status == 3
    assert "no passage has this id: 'other'" in err


def test_eval_says_what_it_left_out(run: Run, tiny: Path, questions: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(questions.read_text() + '{"question": "who?", "answers": ["Ada"]}\n')
    _, out, _ = run("eval", "--reader", tiny, "--data", more)
    assert "on 2 questions (1 without passages or answers left out); " in out


def test_eval_limit_and_task(run: Run, tiny: Path, questions: Path) -> None:
    words = ("eval", "--reader", tiny, "--data", questions, "--limit", "1", "--task", "mine")
    report = json.loads(run(*words, "--json", "-")[1])
    assert (report["n"], report["task"]) == (1, "mine")
    assert run(*words)[1].startswith("mine, ")


@pytest.mark.parametrize("from_store", [False, True])
def test_bench_report(
    run: Run, whole_store: Path, tiny: Path, questions: Path, from_store: bool
) -> None:
    status, out, _ = run(
        "bench", "--reader", tiny, "--data", questions, "--passages", "2", "--rounds", "1",
        "--dtype", "fp32", "--checkpoint", tiny / "btr", "--json", "-",
        *(("--store", whole_store) if from_store else ()),
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0
    assert {"machine", "settings", "rows"} <= report.keys()
    assert [row["mode"] for row in report["rows"]] == ["plain", "decomposed", "btr", "btr"]
    for row in report["rows"]:
        assert {
            "family", "shape", "mode", "techniques", "queries_per_s", "ratio_to_plain",
            "stages_ms", "peak_rss_mb",
        } <= row.keys()  # fmt: skip
    assert report["rows"][0]["ratio_to_plain"] == 1
    assert report["settings"]["passages_per_question"] == 2


def test_bench_of_a_store(run: Run, whole_store: Path) -> None:
    words = ("bench", "--store", whole_store, "--passages", "2", "--rounds", "3")
    status, out, _ = run(*words, "--json", "-")
    assert status == 0
    report = json.loads(out)
    assert {row["step"] for row in report["rows"]} == {
        "opening", "states, warm", "their checksums", "texts, warm", "states, cold",
    }  # fmt: skip
    for row in report["rows"]:
        assert 0 < row["range"][0] <= row["ms"] <= row["range"][1]
    assert "states, cold" in run(*words)[1]
    status, _, err = run("bench", "--store", whole_store, "--passages", "1000")
    assert status == 2
    assert "too few passages" in err


def test_bench_for_people(run: Run, tiny: Path, questions: Path) -> None:
    status, out, _ = run(
        "bench", "--reader", tiny, "--data", questions, "--passages", "1", "--rounds", "1"
    )
    assert status == 0
    assert "times plain" in out
    assert "ms by stage" in out
