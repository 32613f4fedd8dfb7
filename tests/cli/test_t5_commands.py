"""Every command with a Fusion-in-Decoder checkpoint: a tiny one, trained here on four facts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from btr.answering import Answerer
from btr.cli.main import main
from btr.readers.base import ReadOptions
from btr.readers.t5_checkpoint import load_network, save_checkpoint
from btr.readers.t5_layers import self_attention
from btr.readers.t5_network import SplitT5
from cli_lines import one_line
from tiny_t5 import t5_tokenizer, tiny_t5

Run = Callable[..., tuple[int, str, str]]

FACTS = {
    "Who was queen of the north?": "Ada",
    "Which lake is wide?": "north lake",
    "Who built the first bridge?": "king Harald",
    "When was the bridge built?": "1172",
}
TEXTS = [
    ("rivers", "The river rises in snow. It ends at a wide salt lake where birds rest."),
    ("Bridges", "The first bridge was built of stone by king Harald in 1172."),
    ("Ada", "Ada was queen of the north."),
    ("Lake", "The north lake is wide and the south lake is salt."),
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, questions: Path) -> Path:
    """The facts learned by heart, by the three steps as users run them."""
    folder = tmp_path_factory.mktemp("readers") / "facts"
    base = folder / "base"
    tiny_t5(t5_tokenizer(), wild=False).save_pretrained(base)
    t5_tokenizer().save_pretrained(base)
    common = [
        "train", "-o", folder, "--data", questions, "--dev", questions, "--epochs", "80",
        "--evaluate-every", "80", "--lr", "5e-3", "--warmup", "5", "--dropout", "0",
        "--precision", "fp32",
    ]  # fmt: skip
    for options in (
        ["--stage", "reader", "--from", base, "--query-budget", "16", "--passage-budget", "96",
         "--answer-budget", "16"],
        ["--stage", "decompose", "--layout", "2+2"],
        ["--stage", "binarize"],
    ):  # fmt: skip
        assert main([str(word) for word in [*common, *options]]) == 0
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "facts.jsonl"
    lines = [{"id": f"p{i}", "title": t, "text": body} for i, (t, body) in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "facts.jsonl"
    contexts = [{"id": f"p{i}", "title": t, "text": body} for i, (t, body) in enumerate(TEXTS)]
    file.write_text(
        "".join(
            json.dumps({"id": str(i), "question": q, "answers": [a], "ctxs": contexts}) + "\n"
            for i, (q, a) in enumerate(FACTS.items())
        )
    )
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, corpus: Path, reader: Path) -> Path:
    path = tmp_path_factory.mktemp("stores") / "facts.btr"
    assert main(["index", str(corpus), "-o", str(path), "--reader", str(reader)]) == 0
    return path


@pytest.fixture(scope="module")
def continuous(tmp_path_factory: pytest.TempPathFactory, corpus: Path, reader: Path) -> Path:
    path = tmp_path_factory.mktemp("stores") / "continuous.btr"
    words = ["index", corpus, "-o", path, "--reader", reader, "--mode", "decomposed"]
    assert main([str(word) for word in words]) == 0
    return path


def changed(reader: Path, folder: Path, change: Callable[[SplitT5], None], **settings: Any) -> Path:
    """A copy of a checkpoint with other weights or settings."""
    network, tokenizer, config = load_network(reader)
    change(network)
    save_checkpoint(folder, network, tokenizer, replace(config, **settings), torch.float32)
    return folder


def scale(weight: torch.Tensor, factor: float) -> None:
    with torch.no_grad():
        weight *= factor


def distance_bias(network: SplitT5) -> torch.Tensor:
    return self_attention(network.blocks[0]).SelfAttention.relative_attention_bias.weight


def test_ask_generates_and_cites(run: Run, store: Path) -> None:
    for question, answer in FACTS.items():
        status, out, err = run("ask", store, question, "--dtype", "fp32", "--json", "-")
        assert status == 0, err
        reply = json.loads(out)
        assert reply["answer"] == answer
        assert reply["confidence"] > 0.5
        best = reply["candidates"][0]
        assert answer in best["sentence"]
        assert len(best["citations"]) == len(TEXTS)
        assert answer in best["passage"]["text"]


@pytest.mark.parametrize("mode", ["plain", "decomposed", "btr"])
@pytest.mark.parametrize(
    "options",
    [(), ("--search", "beam", "--beams", "3"), ("--search", "extract"), ("--int8", "--batch", "3")],
    ids=lambda options: " ".join(options) or "greedy",
)
def test_eval_scores_every_mode_and_search(
    run: Run, reader: Path, questions: Path, mode: str, options: tuple[str, ...]
) -> None:
    status, out, _ = run(
        "eval", "--reader", reader, "--data", questions, "--mode", mode, "--dtype", "fp32",
        "--json", "-", *options,
    )  # fmt: skip
    report = json.loads(out)
    assert (status, report["family"], report["mode"], report["em"]) == (0, "t5", mode, 100)


def test_ablation_leaves_out_one_technique_at_a_time(
    run: Run, reader: Path, questions: Path
) -> None:
    status, out, err = run(
        "eval", "--ablation", "--reader", reader, "--data", questions, "--without-recovery", reader,
        "--without-distillation", reader, "--dtype", "fp32", "--json", "-",
    )  # fmt: skip
    assert status == 0, err
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert list(rows) == [
        "plain reader", "BTR", "without binarization", "without intra-passage merging",
        "without cross-passage merging", "without recovery", "without distillation",
    ]  # fmt: skip
    assert rows["plain reader"]["score"] == 100
    assert {row["metric"] for row in rows.values()} == {"em"}
    assert rows["without distillation"]["paper"]["em"] == 48.2
    assert rows["BTR"]["paper"] == {"em": 49.5, "queries_per_s": 31.5, "gigabytes": 127}
    assert (rows["BTR"]["intra"], rows["without intra-passage merging"]["intra"]) == (0.2, 0)
    assert rows["without binarization"]["bytes_per_token"] == 64
    assert rows["BTR"]["bytes_per_token"] == 6
    out = run("eval", "--ablation", "--reader", reader, "--data", questions)[1]
    assert out.count("without") == 3
    assert out.splitlines()[0].split()[0] == "EM"


def test_ablation_reads_a_compressed_store(
    run: Run, reader: Path, store: Path, questions: Path, tmp_path: Path
) -> None:
    compressed = shutil.copytree(store, tmp_path / "compressed.btr")
    assert run("compress", compressed)[0] == 0
    words = ("eval", "--ablation", "--reader", reader, "--data", questions, "--json", "-")
    found = {}
    for path, flags in ((store, ()), (compressed, ("--retrieve",))):
        status, out, err = run(*words, "--store", path, "--search", "extract", *flags)
        assert status == 0, err
        found[path] = {row["name"]: row for row in json.loads(out)["rows"]}
    assert "without offline compression" not in found[store]
    rows = found[compressed]
    assert rows["without offline compression"]["paper"]["gigabytes"] == 159
    assert rows["without offline compression"]["bytes_per_token"] == 6
    size = json.loads(run("info", compressed, "--json", "-")[1])["state_bytes_per_token"]
    for name in ("BTR", "without intra-passage merging"):
        assert rows[name]["store"]
        assert rows[name]["bytes_per_token"] == pytest.approx(size, abs=0.01)


def test_ablation_refuses_what_it_would_ignore(run: Run, reader: Path, questions: Path) -> None:
    words = ("eval", "--reader", reader, "--data", questions)
    for flags, message in (
        (("--mode", "plain"), "found --mode"),
        (("--resume",), "found --resume"),
        (("--batch", "2"), "found --batch"),
        (("--intra", "0.1", "--cross", "0.1"), "found --intra, --cross"),
        (("--retrieve",), "need a store"),
    ):
        status, _, err = run(*words, "--ablation", *flags)
        assert (status, message in one_line(err)) == (2, True), err
    status, _, err = run(*words, "--without-recovery", reader)
    assert (status, "add --ablation" in one_line(err)) == (2, True)


def test_sweep_tries_ratios(run: Run, reader: Path, questions: Path, tmp_path: Path) -> None:
    status, out, err = run(
        "sweep", "--reader", reader, "--data", questions, "-o", tmp_path / "s", "--passages", "1,4",
        "--intra", "0,0.2", "--cross", "0,0.3", "--modes", "plain,btr", "--dtype", "fp32",
    )  # fmt: skip
    assert status == 0, err
    points = json.loads((tmp_path / "s" / "sweep.json").read_text())["points"]
    tried = [(p["mode"], p["passages"], p["intra"], p["cross"]) for p in points]
    ratios = [(0, 0), (0, 0.3), (0.2, 0), (0.2, 0.3)]
    assert tried == [("plain", n, 0, 0) for n in (1, 4)] + [
        ("btr", n, *pair) for n in (1, 4) for pair in ratios
    ]
    assert {p["metric"] for p in points} == {"f1"}
    by_passages = {(p["mode"], p["passages"]): p["score"] for p in points if not p["intra"]}
    assert by_passages["plain", 4] == 100
    assert "merging 0.2/0.3" in out


def test_eval_from_the_store_with_merging(
    run: Run, reader: Path, store: Path, questions: Path
) -> None:
    status, out, _ = run(
        "eval", "--reader", reader, "--data", questions, "--store", store, "--retrieve",
        "--intra", "0.1", "--cross", "0.1", "--every", "2", "--json", "-",
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0
    assert report["settings"]["states"] == "stored"
    assert report["settings"]["merging"] == {"intra": 0.1, "cross": 0.1, "every": 2}
    assert report["em"] >= 50


def test_info_counts_scales_and_verify_passes(run: Run, store: Path) -> None:
    status, out, _ = run("info", store, "--json", "-")
    report = json.loads(out)
    assert status == 0
    assert report["bytes"]["scales"] == 2 * report["tokens"]
    assert report["dim"] == 32
    assert run("verify", store)[0] == 0


def test_bits_of_what_words_leave_unsaid_are_stored_and_compressed(
    run: Run, reader: Path, corpus: Path, questions: Path, tmp_path: Path
) -> None:
    words, store = tmp_path / "words", tmp_path / "words.btr"
    status, _, err = run(
        "train", "-o", words, "--stage", "binarize", "--rule", "words", "--from", reader,
        "--plain", reader / "plain", "--data", questions, "--dev", questions, "--epochs", "40",
        "--evaluate-every", "40", "--lr", "5e-3", "--warmup", "5", "--dropout", "0",
        "--precision", "fp32",
    )  # fmt: skip
    assert status == 0, err
    assert run("index", corpus, "-o", store, "--reader", words)[0] == 0
    report = json.loads(run("info", store, "--json", "-")[1])
    assert report["bytes"]["refs"] == report["bytes"]["scales"] == 2 * report["tokens"]
    replies = {}
    for compressed in (False, True):
        if compressed:
            status, _, err = run(
                "compress", store, "--lossless", "--ratio", "0", "--keep-stop-words"
            )
            assert status == 0, err
        assert run("verify", store)[0] == 0
        for question, answer in FACTS.items():
            reply = json.loads(run("ask", store, question, "--dtype", "fp32", "--json", "-")[1])
            assert reply["answer"] == answer
            again = replies.setdefault(question, reply)
            assert reply["confidence"] == again["confidence"]
    # Bits of the states themselves are others.
    status, _, err = run("ask", store, "Who was queen?", "--reader", reader)
    assert status == 5, err


def test_bench_of_the_reader_and_of_a_shape(run: Run, reader: Path, questions: Path) -> None:
    status, out, _ = run(
        "bench", "--reader", reader, "--data", questions, "--passages", "2", "--rounds", "1",
        "--dtype", "fp32", "--json", "-",
    )  # fmt: skip
    assert status == 0
    assert [row["family"] for row in json.loads(out)["rows"]] == ["t5"] * 3
    status, out, _ = run(
        "bench", "--shape", "tiny", "--passages", "2", "--passage-tokens", "8", "--query-tokens",
        "4", "--answer-tokens", "2", "--rounds", "1", "--dtype", "fp32", "--parts", "--json", "-",
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0
    labels = [row["shape"] for row in report["rows"]]
    assert len(labels) == len(set(labels)) >= 8
    gflop = [row["gflop"] for row in report["rows"]]
    assert report["rows"][0]["ratio_to_unmodified"] == report["rows"][1]["ratio_to_plain"] == 1
    assert report["rows"][1]["unmodified_range"][0] > 0
    assert len(report["parts"]) == 6
    assert all(part["ratio"] > 0 for part in report["parts"])
    assert gflop[1] > gflop[4] > gflop[5] > gflop[6] > gflop[7] > 0


def test_a_store_of_continuous_states_answers_like_decomposition_on_the_fly(
    run: Run, continuous: Path
) -> None:
    answerer = Answerer.open(continuous)
    decomposed, store = answerer.reader, answerer.store
    assert (decomposed.mode, decomposed.family) == ("decomposed", "t5")
    numbers = range(len(store))
    passages, states = store.passages(numbers), store.held_states(numbers)
    assert None not in states
    for state, made in zip(states, decomposed.encode(passages), strict=True):
        assert state.rows.tobytes() == made.rows.tobytes()
    for question, answer in FACTS.items():
        for search in ("greedy", "beam", "extract"):
            options = ReadOptions(search=search)
            stored = decomposed.read(question, passages, states, options=options)
            assert stored.answers == decomposed.read(question, passages, options=options).answers
            assert stored.answers[0].text == answer
        reply = answerer.ask(question)
        assert "unpack" in reply.stages_ms  # states were loaded, not made
        assert reply.answer.text == answer
    status, out, _ = run("info", continuous, "--json", "-")
    report = json.loads(out)
    assert status == 0
    assert report["bytes"]["bits"] >= 2 * 32 * report["tokens"]
    assert run("verify", continuous)[0] == 0


def test_states_beyond_float16_are_read_and_not_stored(
    run: Run, reader: Path, corpus: Path, questions: Path, tmp_path: Path
) -> None:
    large = changed(
        reader / "decomposed", tmp_path / "large" / "decomposed",
        lambda network: scale(network.model.shared.weight, 1e6),
    ).parent  # fmt: skip
    status, _, err = run("eval", "--reader", large, "--data", questions, "--mode", "decomposed")
    assert status == 0, err
    status, _, err = run(
        "index", corpus, "-o", tmp_path / "x.btr", "--reader", large, "--mode", "decomposed"
    )
    assert status == 5
    line = one_line(err)
    assert "passage 'p0'" in line
    assert "btr checkpoint" in line
    assert not (tmp_path / "x.btr").exists()


@pytest.mark.parametrize(
    ("field", "change", "settings"),
    [
        ("lower_weights", lambda n: scale(n.blocks[1].layer[1].DenseReluDense.wo.weight, 1.1), {}),
        ("lower_weights", lambda n: scale(n.model.shared.weight, 1.1), {}),
        ("lower_weights", lambda n: scale(distance_bias(n), 1.1), {}),
        ("lower_weights", lambda n: scale(n.next_norm.weight, 1.1), {}),
        ("scale", lambda n: None, {"scale": "rms8"}),
        ("template", lambda n: None, {"passage_template": "title: {title} text: {text}"}),
        ("passage_budget", lambda n: None, {"passage_budget": 95}),
    ],
    ids=["layer", "embeddings", "bias", "norm", "scale", "template", "budget"],
)
def test_a_store_refuses_a_reader_whose_states_would_be_others(
    run: Run,
    reader: Path,
    store: Path,
    tmp_path: Path,
    field: str,
    change: Callable[[SplitT5], None],
    settings: dict[str, Any],
) -> None:
    other = changed(reader / "btr", tmp_path / "other", change, **settings)
    status, _, err = run("ask", store, "Who was queen?", "--reader", other)
    assert (status, f"{field} differs" in one_line(err)) == (5, True)


def test_a_store_takes_a_reader_with_other_weights_above_the_cut(
    run: Run, reader: Path, store: Path, tmp_path: Path
) -> None:
    def change(network: SplitT5) -> None:
        scale(network.blocks[2].layer[1].DenseReluDense.wo.weight, 1.1)
        scale(network.model.decoder.final_layer_norm.weight, 1.1)

    other = changed(reader / "btr", tmp_path / "other", change)
    status, _, err = run("ask", store, "Who was queen?", "--reader", other)
    assert status == 0, err


def test_wrong_pairs_and_bad_calls(
    run: Run, reader: Path, store: Path, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    status, _, err = run("eval", "--reader", tiny, "--data", questions, "--store", store)
    assert (status, "another reader" in one_line(err)) == (5, True)
    status, _, err = run("index", questions, "-o", tmp_path / "x.btr", "--reader", reader / "plain")
    assert status == 3
    assert "no btr checkpoint" in one_line(err)
    status, _, err = run(
        "eval", "--reader", tiny, "--data", questions, "--intra", "0.2", "--mode", "plain"
    )
    assert (status, "cannot merge tokens" in one_line(err)) == (2, True)


def test_a_long_question_is_said_to_be_cut(run: Run, store: Path) -> None:
    status, out, _ = run("ask", store, "who was the queen of the north " * 9)
    assert status == 0
    assert "longer than the reader's budget" in out
