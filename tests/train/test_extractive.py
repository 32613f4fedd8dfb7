"""The three steps on tiny files: each writes a checkpoint of its mode that loads and answers."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from btr.data.passages import Passage
from btr.errors import InputError, UsageError
from btr.readers.bert import BertReader
from btr.readers.bert_checkpoint import load_config
from btr.readers.bert_network import SplitBert
from btr.store.format import Guesses
from btr.train.extractive import (
    SpanLoss,
    run_network,
    stored_signs,
    train_extractive,
)
from btr.train.loop import LoopSettings
from btr.train.sources import Source
from btr.train.span_examples import SpanData, SpanDataBuilder, SpanExample, collate
from btr.train.span_sources import SpanDataSettings
from btr.train.span_starts import choose_trained, start_binarized, start_decomposed
from btr.train.stage import Places, StageSettings
from btr.train.stored import StoredStates
from tiny_readers import make_reader, tiny_model

TEXT = "The first bridge number {n} was built by king Harald over the wide lake."


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SpanDataSettings:
    folder = tmp_path_factory.mktemp("data")
    for name in ("gold", "retrieved"):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as out:
            for n in range(60):
                text = TEXT.format(n=n) if name == "gold" else "In the north: " + TEXT.format(n=n)
                context = {"id": f"{name}{n}", "title": "Bridge", "text": text}
                other = {"id": f"x{n}", "title": "Lake", "text": f"Lake {n} is salt."}
                passages = [context] if name == "gold" else [other, context]
                record = {"question": f"who built bridge {n}?", "answers": ["King Harald"]}
                out.write(json.dumps(record | {"ctxs": passages}) + "\n")
    files = (Source(folder / "gold.jsonl.gz"), Source(folder / "retrieved.jsonl.gz", 0.5))
    return SpanDataSettings(files, dev_share=0.3, score_on=("gold",))


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


LOOP = LoopSettings(epochs=1, lr=1.5e-4)


def settings(stage: str, **weights: float) -> StageSettings:
    return StageSettings(stage, LOOP, token_budget=600, **weights)


def places(folder: Path, mode: str, start: Path, plain: Path | None = None) -> Places:
    return Places(start, folder / mode, folder / "training" / mode, plain)


def test_three_steps_give_three_readers_and_a_fourth_keeps_their_bits(tmp_path, data, base):
    figures = train_extractive(settings("reader"), data, places(tmp_path, "plain", base))
    assert 0 <= figures["gold_f1"] <= 100
    assert figures["score"] == pytest.approx(figures["gold_f1"], abs=0.01)
    plain = tmp_path / "plain"
    train_extractive(
        settings("decompose", answer_weight=1.0, state_weight=0.2), data,
        places(tmp_path, "decomposed", plain, plain), layout=(3, 2),
    )  # fmt: skip
    train_extractive(
        settings("binarize", answer_weight=1.0, recovery_weight=0.1), data,
        places(tmp_path, "btr", tmp_path / "decomposed", plain),
    )  # fmt: skip
    loop = LoopSettings(epochs=1, lr=0.01, warmup=1)
    train_extractive(
        StageSettings("adapt", loop, token_budget=600), data,
        places(tmp_path, "adapted", tmp_path / "btr"),
    )  # fmt: skip
    passage = Passage("p", TEXT.format(n=1), "Bridge")
    before, after = (BertReader.from_pretrained(tmp_path / name) for name in ("btr", "adapted"))
    assert before.fingerprint == after.fingerprint
    assert before.encode([passage])[0].rows.tobytes() == after.encode([passage])[0].rows.tobytes()
    assert not torch.equal(before.network.joint[0].output.dense.weight,
                           after.network.joint[0].output.dense.weight)  # fmt: skip
    for mode, split, depth in (("plain", 0, 4), ("decomposed", 3, 5), ("btr", 3, 5)):
        reader = BertReader.from_pretrained(tmp_path / mode)
        assert reader.mode == mode
        assert reader.split_layer == split
        assert len(reader.network.lower) + len(reader.network.joint) == depth
        assert reader.read("who built it?", [passage]).answers
        log = (tmp_path / "training" / mode / "log.jsonl").read_text().splitlines()
        losses = json.loads(log[0])
        wanted = {"plain": {"task"}, "decomposed": {"task", "answer", "state"},
                  "btr": {"task", "answer", "recovery"}}  # fmt: skip
        assert wanted[mode] <= losses.keys()


def test_word_embeddings_are_trained_unless_everybody_has_them(tmp_path, data, base):
    train_extractive(settings("reader"), data, places(tmp_path, "plain", base))
    name = "bert.embeddings.word_embeddings.weight"
    trained = BertReader.from_pretrained(tmp_path / "plain").network.model.get_parameter(name)
    before = BertReader.from_pretrained(base).network.model.get_parameter(name)
    assert not torch.equal(trained, before)


def test_missing_pieces_are_named(tmp_path, data, base):
    here = places(tmp_path, "out", base)
    with pytest.raises(UsageError, match="give --plain"):
        train_extractive(settings("decompose", answer_weight=1.0), data, here, layout=(2, 2))
    with pytest.raises(UsageError, match="give --layout"):
        train_extractive(settings("decompose"), data, places(tmp_path, "out", base, base))
    with pytest.raises(UsageError, match="step binarize needs a decomposed checkpoint"):
        train_extractive(settings("binarize"), data, places(tmp_path, "out", base, base))
    missing = SpanDataSettings((Source(tmp_path / "no.jsonl"),))
    with pytest.raises(InputError, match=r"no\.jsonl"):
        train_extractive(settings("reader"), missing, here)
    elsewhere = SpanDataSettings(data.sources, dev_share=0.3, score_on=("squad",))
    with pytest.raises(UsageError, match="no dev questions to score on: squad"):
        train_extractive(settings("reader"), elsewhere, here)


def test_what_a_reader_is_stays_when_it_is_trained_on(tmp_path, data, tokenizer):
    make_reader(tmp_path / "btr", tokenizer, "btr", 2)
    described = json.loads((tmp_path / "btr" / "config.json").read_text())
    described["btr"]["abstention"] = 1.9
    (tmp_path / "btr" / "config.json").write_text(json.dumps(described))
    (tmp_path / "btr" / "digests.json").unlink()
    loop = LoopSettings(epochs=1, lr=1e-3, steps=1)
    train_extractive(
        StageSettings("adapt", loop, 600), data, places(tmp_path, "adapted", tmp_path / "btr")
    )
    before, after = (load_config(tmp_path / name) for name in ("btr", "adapted"))
    assert after == before
    assert (after.abstention, after.query_budget) == (1.9, 24)


TASKS = [(), ("no", "yes")]


@pytest.mark.parametrize("labels", TASKS)
@pytest.mark.parametrize("stage", ["reader", "decompose", "binarize", "adapt"])
def test_every_loss_of_every_task_is_there_and_reaches_all_that_is_trained(
    tokenizer, stage: str, labels: tuple[str, ...]
):
    """Several processes wait for the gradient of every parameter that is to have one."""
    data, examples = batch_of()
    examples = [replace(e, label=i if labels else -1) for i, e in enumerate(examples)]
    data.examples.extend(examples)
    plain = SplitBert(tiny_model(tokenizer), 0, 24, labels=len(labels))
    network = plain if stage == "reader" else start_decomposed(plain, 2, 2)
    if stage in ("binarize", "adapt"):
        network = start_binarized(network, data)
    weights = {} if stage == "reader" else {"state_weight": 0.2, "answer_weight": 1.0}
    chosen = settings(stage, recovery_weight=0.1, **weights)
    choose_trained(network.eval(), chosen, embeddings=True)
    teacher = None if stage == "reader" else SplitBert(tiny_model(tokenizer), 0, 24,
                                                       labels=len(labels))  # fmt: skip
    loss = SpanLoss(network, data, chosen, teacher)
    parts = loss(examples)
    distilled = set() if stage == "reader" else {"answer", "state"}
    assert parts.keys() == {"task"} | distilled | ({"recovery"} if stage == "binarize" else set())
    torch.stack(list(parts.values())).sum().backward()
    silent = [n for n, p in loss.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    # A weight scales its loss, and 0 switches it off.
    doubled = SpanLoss(network, data, replace(chosen, task_weight=2.0), teacher)
    if stage == "binarize":
        doubled.recovery.load_state_dict(loss.recovery.state_dict())
    torch.testing.assert_close(doubled(examples)["task"], 2 * parts["task"])
    off = SpanLoss(network, data, replace(chosen, task_weight=0.0), teacher)
    assert off(examples).keys() == parts.keys() - {"task"}


@pytest.mark.parametrize("labels", TASKS)
def test_a_reader_that_is_its_own_teacher_has_nothing_to_learn_from_it(tokenizer, labels):
    data, examples = batch_of()
    network = SplitBert(tiny_model(tokenizer), 0, 24, labels=len(labels)).eval()
    chosen = settings("decompose", state_weight=1.0, answer_weight=1.0)
    same = SpanLoss(network, data, chosen, network)([replace(e, label=0) for e in examples])
    assert same["answer"].item() == pytest.approx(0, abs=1e-6)
    assert same["state"].item() == pytest.approx(0, abs=1e-6)


def test_tasks_do_not_mix(tmp_path, data, tokenizer):
    make_reader(tmp_path / "plain", tokenizer, "plain", 0)
    plain = tmp_path / "plain"
    classes = replace(data, labels=("King Harald", "Queen Ada"))
    here = places(tmp_path, "decomposed", plain, plain)
    with pytest.raises(UsageError, match=r"the teacher tells other classes.*--answer-weight 0"):
        train_extractive(settings("decompose", answer_weight=1.0), classes, here, layout=(2, 2))
    with pytest.raises(UsageError, match="every loss of step decompose is switched off"):
        train_extractive(settings("decompose", task_weight=0.0), data, here, layout=(2, 2))


def batch_of(tokens: int = 9) -> tuple[SpanData, list[SpanExample]]:
    ids = torch.arange(5, 5 + tokens).numpy()
    data = SpanData(questions=[ids[:4]], passages=[ids, ids[::-1].copy()])
    return data, [SpanExample(0, 0, ((1, 2),)), SpanExample(0, 1, ((1, 2),))]


def test_the_papers_split_starts_from_the_same_layers(tokenizer):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    split = start_decomposed(plain, 2, 2)
    ours = split.model.bert.encoder.layer.state_dict()
    for name, value in plain.model.bert.encoder.layer.state_dict().items():
        assert torch.equal(value, ours[name])
    assert split.split_layer == 2


def test_extra_layers_below_the_cut_start_close_to_the_identity(tokenizer):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    data, examples = batch_of()
    with torch.no_grad():
        shallow = run_network(start_decomposed(plain, 2, 2).eval(), collate(data, examples))
        deep = run_network(start_decomposed(plain, 3, 2).eval(), collate(data, examples))
    # The norms' spread is estimated over dimensions, so it is close, not equal.
    apart = (shallow[3] - deep[3]).norm() / shallow[3].norm()
    assert apart < 0.35


@pytest.mark.parametrize(("lower", "joint"), [(0, 4), (2, 4), (0, 1), (6, 1)])
def test_any_depth_below_the_cut(tokenizer, lower: int, joint: int):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    data, examples = batch_of()
    with torch.no_grad():
        network = start_decomposed(plain, lower, joint).eval()
        outputs = run_network(network, collate(data, examples))
        whole = run_network(plain.eval(), collate(data, examples))
    assert (len(network.lower), len(network.joint)) == (lower, joint)
    if joint == 4:
        assert (outputs[0] - whole[0]).norm() / whole[0].norm() < (1e-6 if lower == 0 else 0.35)


@pytest.mark.parametrize(("lower", "joint"), [(4, 0), (2, 5)])
def test_a_layout_has_joint_layers_and_no_more_than_the_reader(tokenizer, lower: int, joint: int):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    with pytest.raises(UsageError, match=rf"1 to 4 joint layers, found {lower}\+{joint}"):
        start_decomposed(plain, lower, joint)


@pytest.mark.parametrize("rule", ["calibrated", "words"])
def test_binarizing_starts_from_the_least_squares_fit(tokenizer, rule):
    split = start_decomposed(SplitBert(tiny_model(tokenizer), 0, 24), 2, 2).eval()
    data, examples = batch_of()
    data.examples.extend(examples)
    network = start_binarized(split, data, rule)
    assert split.binarizer is None
    assert (network.words is not None) == (rule == "words")
    batch = collate(data, examples)
    with torch.no_grad():
        made = run_network(network, batch)
        state, restored = made.state, made.restored
    error = (state - restored)[batch.passage_mask].square().mean()
    plain_rule = (state - torch.where(state > 0, 1.0, -1.0))[batch.passage_mask].square().mean()
    assert error < plain_rule


def test_the_papers_own_rule_learns_no_scale(tokenizer):
    split = start_decomposed(SplitBert(tiny_model(tokenizer), 0, 24), 2, 2).eval()
    data, _ = batch_of()
    network = start_binarized(split, data, "raw")
    assert (network.binarizer.scale == 1).all()
    assert (network.binarizer.offset == 0).all()
    with pytest.raises(UsageError, match="pre-norm"):
        start_binarized(split, data, "tanh")


@pytest.mark.parametrize("rule", ["calibrated", "words"])
def test_what_a_store_guesses_is_trained_on_as_it_is_read(tmp_path, tokenizer, rule):
    reader = make_reader(tmp_path / "btr", tokenizer, "btr", 2, rule=rule)
    passages = [Passage(str(n), TEXT.format(n=n) + " Indeed." * n, "Bridge") for n in range(3)]
    stored = StoredStates(reader, passages, None)
    # As if tokens 2 and 5 of the second passage had been left out.
    levels = torch.randint(-127, 128, (2, reader.width)).to(torch.int8).numpy()
    (state,) = stored.states([1])
    stored._states[1] = replace(state, guesses=Guesses(np.array([2, 5]), levels))
    builder = SpanDataBuilder(tokenizer, 24, 64)
    question = builder.question("who built it?")
    for passage in passages:
        assert builder.add(question, passage, ["king Harald"])
    builder.data.stored = stored
    batch = collate(builder.data, builder.data.examples)
    assert batch.stored is not None
    assert batch.stored.guesses is not None
    with torch.inference_mode():
        signs = stored_signs(batch, batch.stored, torch.float32, reader.width)
        made = reader.network.restore(signs, batch.passage_ids)[batch.passage_mask]
        read = reader._from_rows(stored.of(passages))
    torch.testing.assert_close(made.to(read.dtype), read)
