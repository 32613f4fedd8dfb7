"""Every command with a Fusion-in-Decoder checkpoint: a tiny one, trained here on four facts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from btr.cli.main import main
from btr.readers.base import Mode
from btr.readers.t5_checkpoint import T5ReaderConfig, save_checkpoint
from btr.readers.t5_network import Restored, SplitT5
from btr.readers.t5_text import FidText
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
STEPS, LEARNED = 200, 0.02


def train(folder: Path, mode: Mode, split_layer: int, start: SplitT5 | None) -> SplitT5:
    """Learn the facts by heart, in the mode's own arithmetic, and save the checkpoint."""
    tokenizer = t5_tokenizer()
    model = tiny_t5(tokenizer, wild=False) if start is None else start.model
    network = SplitT5(model, split_layer, binarized=mode == "btr")
    config = T5ReaderConfig(mode, split_layer, query_budget=16, passage_budget=96, answer_budget=16)
    text = FidText(tokenizer, config.query_template, config.passage_template, 1)
    passages = [text.passage(t, body, 96).ids for t, body in TEXTS]
    lengths = [len(ids) for ids in passages]
    flat = torch.tensor([i for ids in passages for i in ids])
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    queries = [text.query(question, 16)[0] for question in FACTS]
    answers = [torch.tensor([[*text.encode(answer)[0], 1]]) for answer in FACTS.values()]
    ids = torch.tensor([i for query in queries for i in query])
    asked = [len(query) for query in queries]
    for _ in range(STEPS):
        optimizer.zero_grad()
        hidden = network.run_lower(flat, lengths)
        if network.binarizer is None:
            states = [Restored(part) for part in torch.split(hidden, lengths)]
        else:
            signs, variance = network.binarizer.encode(hidden)
            restored = network.binarizer.restore(signs, variance)
            pairs = zip(torch.split(restored, lengths), torch.split(signs, lengths), strict=True)
            states = [Restored(residual, normed) for residual, normed in pairs]
        packed = network.run_joint(
            torch.split(network.run_lower(ids, asked), asked), [states] * 4, [16] * 4
        )
        losses = [
            model(
                encoder_outputs=BaseModelOutput(last_hidden_state=p.hidden[None]), labels=labels
            ).loss
            for p, labels in zip(packed, answers, strict=True)
        ]
        loss = torch.stack(losses).mean()
        if loss < LEARNED:
            break
        loss.backward()
        optimizer.step()
    save_checkpoint(folder / mode, network.eval(), tokenizer, config, dtype=torch.float32)
    return network


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "facts"
    plain = train(folder, "plain", 0, None)
    decomposed = train(folder, "decomposed", 2, plain)
    train(folder, "btr", 2, decomposed)
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
    [(), ("--search", "beam", "--beams", "3"), ("--search", "extract"), ("--int8",)],
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
    assert len(report["parts"]) == 6
    assert all(part["ratio"] > 0 for part in report["parts"])
    assert gflop[1] > gflop[4] > gflop[5] > gflop[6] > gflop[7] > 0


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
