"""Fusion-in-Decoder training: the pass equals the reader, losses do what they say, steps chain."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from btr.binarize import WordResidual, hard_sign
from btr.data.passages import Passage
from btr.data.questions import Question
from btr.errors import InputError, UsageError
from btr.readers.base import MODES
from btr.readers.t5 import T5Reader
from btr.readers.t5_checkpoint import T5ReaderConfig, load_network
from btr.readers.t5_decoder import Cache
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_layers import rms_norm
from btr.readers.t5_network import SplitT5
from btr.train.fid import FidLoss, _config_of, some_states, train_fid
from btr.train.fid_examples import (
    FidData,
    FidDataSettings,
    FidExample,
    add_distractors,
    collate,
    epoch_batches,
    grounded,
)
from btr.train.fid_pass import TrainingPass
from btr.train.loop import LoopSettings
from btr.train.sources import Source
from btr.train.stage import Places, StageSettings
from btr.train.stored import StoredRows
from btr.train.word_fit import fit_words
from tiny_t5 import LAYERS, t5_tokenizer, tiny_t5

BUDGET = 16
LOOP = LoopSettings(epochs=1, lr=3e-3, warmup=2, state_minutes=0)
CONFIG = T5ReaderConfig(query_budget=BUDGET, passage_budget=60, answer_budget=8)


@pytest.fixture(scope="module")
def t5_tok():
    return t5_tokenizer()


def some_data(seed: int = 0) -> FidData:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int):
        return torch.randint(5, 40, (n,), generator=generator).int().numpy()

    data = FidData(
        questions=[ids(5), ids(9), ids(3)],
        passages=[ids(n) for n in (12, 7, 20, 4, 15, 9)],
        answers=[ids(3), ids(1), ids(4)],
    )
    data.examples = [
        FidExample(0, (0, 1, 2), (0,)), FidExample(1, (3,), (1,)), FidExample(2, (4, 5), (2,)),
    ]  # fmt: skip
    return data


def reader_logits(network: SplitT5, data: FidData, example: FidExample) -> torch.Tensor:
    """Logits of an example's answer by the reader's own packed path and caches."""
    engine = FidEngine(network, scale="rms16", query_budget=BUDGET)
    rows = engine.encode([data.passages[p].tolist() for p in example.passages])
    question = data.questions[example.question].tolist()
    with torch.inference_mode():
        passages = (
            engine.restore(rows) if network.split_layer
            else engine.embed([data.passages[p].tolist() for p in example.passages])
        )  # fmt: skip
        memory = engine.remember([question], [passages])[0]
        labels = data.answers[example.answers[0]].tolist()
        given = torch.tensor([[engine.decoder.start_token, *labels[:-1]]])
        cache = Cache(engine.decoder, 1, len(labels))
        hidden = engine.decoder.run(given, 0, cache, [memory], [1])
        return engine.decoder.logits(hidden)[0]


@pytest.mark.parametrize("kind", ["v1.0", "v1.1", "flan"])
@pytest.mark.parametrize(
    ("split", "binarized", "words"),
    [
        (0, False, False),
        (2, False, False),
        (2, True, False),
        (LAYERS, True, False),
        (2, True, True),
        (LAYERS, True, True),
    ],
)
def test_what_is_trained_is_what_is_read(
    t5_tok, kind: str, split: int, binarized: bool, words: bool
):
    torch.manual_seed(0)
    restorer = WordResidual(32) if words else None
    network = SplitT5(tiny_t5(t5_tok, kind), split, binarized=binarized, words=restorer).eval()
    data = some_data()
    batch = collate(data, data.examples)
    with torch.no_grad():
        logits = TrainingPass(network, BUDGET)(batch).logits
    wanted = [reader_logits(network, data, example) for example in data.examples]
    assert len({len(rows) for rows in wanted}) > 1
    # Stored scales and continuous states are float16.
    torch.testing.assert_close(logits, torch.cat(wanted), rtol=0.01, atol=0.05)


def test_recomputing_gives_the_same_gradients(t5_tok):
    data = some_data()
    grads = []
    for recompute in (False, True):
        network = SplitT5(tiny_t5(t5_tok), 2, binarized=True).eval()
        settings = StageSettings("binarize", LoopSettings(1, 1e-3), recovery_weight=0.5)
        torch.manual_seed(0)
        loss = FidLoss(network, partial(collate, data), settings, CONFIG, recompute=recompute)
        torch.stack(list(loss(data.examples).values())).sum().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(grads[0]) > 20
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_a_network_that_is_its_own_teacher_has_nothing_to_learn_from_it(t5_tok):
    data = some_data()
    network = SplitT5(tiny_t5(t5_tok), 0).eval()
    settings = StageSettings("decompose", LoopSettings(1, 1e-3), state_weight=1, answer_weight=1)
    gather = partial(collate, data)
    same = FidLoss(network, gather, settings, CONFIG, teacher=network)(data.examples)
    assert same["state"].item() == pytest.approx(0, abs=1e-6)
    assert same["answer"].item() == pytest.approx(0, abs=1e-5)
    other = SplitT5(tiny_t5(t5_tok), 2).eval()
    split = FidLoss(other, gather, settings, CONFIG, teacher=network)(data.examples)
    assert split.keys() == {"task", "answer", "state"}
    alone = replace(settings, task_weight=0.0, state_weight=0.0)
    assert FidLoss(other, gather, alone, CONFIG, teacher=network)(data.examples).keys() == {
        "answer"
    }
    assert split["state"].item() > 0.01
    assert split["answer"].item() > 0.01


def test_batches_hold_every_question_once_within_the_budget():
    data = some_data()
    data.examples = data.examples * 5
    batches = epoch_batches(data, seed=3, epoch=0, token_budget=120)
    assert sorted(e.question for b in batches for e in b) == sorted([0, 1, 2] * 5)
    for batch in batches:
        made = collate(data, batch)
        padded = (made.query_ids.shape[1] + made.passage_ids.shape[1]) * len(made.passage_ids)
        assert padded <= 120 or len(batch) == 1
    assert batches == epoch_batches(data, seed=3, epoch=0, token_budget=120)
    assert batches != epoch_batches(data, seed=3, epoch=1, token_budget=120)


def test_distractors_are_siblings_without_the_answer():
    def question(n: int, answer: str) -> Question:
        text = f"The bridge {n} was built by {answer}."
        return Question(str(n), "who?", (answer,), (Passage(str(n), text, f"T{n % 2}"),))

    questions = [("a", question(n, ["Olaf", "Ada", "Ann"][n % 3])) for n in range(12)]
    settings = FidDataSettings((), passages=4, distractors=2)
    filled = list(add_distractors(questions, settings))
    for (_, before), after in zip(questions, filled, strict=True):
        assert len(after.contexts) == 3
        assert after.contexts[0] == before.contexts[0]
        for added in after.contexts[1:]:
            assert added.title == before.contexts[0].title
            assert before.answers[0] not in added.text
    assert list(add_distractors(questions, FidDataSettings(()))) == [q for _, q in questions]


def test_a_question_is_taught_with_a_passage_that_answers_it():
    texts = ["A river.", "A lake.", "Ada built it.", "Olaf and Ada.", "A hill."]
    passages = tuple(Passage(str(n), text) for n, text in enumerate(texts))
    asked = Question("1", "who?", ("Olaf", "Ada", "King Olaf"), passages)

    def taught(question: Question, most: int) -> tuple[str, tuple[str, ...]]:
        cut = grounded(question, most)
        return "".join(p.id for p in cut.contexts), cut.answers

    assert taught(asked, 1) == ("2", ("Ada",))
    assert taught(asked, 2) == ("02", ("Ada",))
    assert taught(asked, 3) == ("012", ("Ada",))
    assert taught(asked, 9) == ("01234", ("Olaf", "Ada"))
    # What no passage says stays as it is, and so does a class, which none has to say.
    assert taught(replace(asked, answers=("Ann", "Eve")), 2) == ("01", ("Ann", "Eve"))
    assert taught(replace(asked, answers=("Ada",), label="Ada"), 2) == ("01", ("Ada",))


def write_questions(path: Path, count: int = 40) -> Path:
    with path.open("w") as out:
        for n in range(count):
            answer = ["Harald", "Olaf"][n % 2]
            text = f"The first bridge number {n} was built by king {answer} over the wide lake."
            contexts = [{"id": f"p{n}", "title": "Bridge", "text": text},
                        {"id": f"q{n}", "title": "Lake", "text": f"Lake {n} is salt."}]  # fmt: skip
            record = {"question": f"who built it {n}?", "answers": [answer], "ctxs": contexts}
            out.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory, t5_tok) -> Path:
    folder = tmp_path_factory.mktemp("t5base")
    tiny_t5(t5_tok, wild=False).save_pretrained(folder)
    t5_tok.save_pretrained(folder)
    return folder


def places(folder: Path, mode: str, start: Path, plain: Path | None = None) -> Places:
    return Places(start, folder / mode, folder / "training" / mode, plain)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base) -> Path:
    """A reader after all three steps, with its folders of work."""
    folder = tmp_path_factory.mktemp("trained")
    questions = write_questions(folder / "questions.jsonl")
    data = FidDataSettings((Source(questions),), passages=2, dev_share=0.2)
    plain, decomposed = folder / "plain", folder / "decomposed"
    train_fid(StageSettings("reader", LOOP, 1500), data, places(folder, "plain", base),
              config=CONFIG)  # fmt: skip
    train_fid(
        StageSettings("decompose", LOOP, 1500, state_weight=0.1, answer_weight=1), data,
        places(folder, "decomposed", plain, plain), layout=(3, 1),
    )  # fmt: skip
    figures = train_fid(
        StageSettings("binarize", LOOP, 1500, recovery_weight=0.1), data,
        places(folder, "btr", decomposed, plain),
    )  # fmt: skip
    assert {"questions_em", "questions_f1", "score"} <= figures.keys()
    return folder


PASSAGE = Passage("p", "The first bridge was built by king Harald over the lake.", "Bridge")


def test_three_steps_give_three_readers(trained):
    for mode in MODES:
        reader = T5Reader.from_pretrained(trained / mode)
        assert (reader.mode, reader.split_layer) == (mode, 0 if mode == "plain" else 3)
        assert reader.config.query_budget == BUDGET
        assert reader.read("who built it?", [PASSAGE]).answers
    log = (trained / "training" / "decomposed" / "log.jsonl").read_text()
    assert {"task", "answer", "state"} <= json.loads(log.splitlines()[0]).keys()


@pytest.mark.parametrize("layout", [(0, LAYERS), (LAYERS, 0)])
def test_a_reader_may_be_cut_before_and_behind_all_layers(tmp_path, trained, layout):
    data = FidDataSettings((Source(trained / "questions.jsonl"),), passages=2, dev_share=0.2)
    plain, decomposed = trained / "plain", tmp_path / "decomposed"
    loop = LoopSettings(epochs=1, lr=3e-3, steps=2)
    weights = {"state_weight": 0.2, "answer_weight": 1.0}
    train_fid(StageSettings("decompose", loop, 1500, **weights), data,
              places(tmp_path, "decomposed", plain, plain), layout=layout)  # fmt: skip
    train_fid(StageSettings("binarize", loop, 1500, recovery_weight=0.1, **weights), data,
              places(tmp_path, "btr", decomposed, plain))  # fmt: skip
    for mode in ("decomposed", "btr"):
        reader = T5Reader.from_pretrained(tmp_path / mode)
        assert reader.split_layer == layout[0]
        stored = reader.read("who built it?", [PASSAGE], reader.encode([PASSAGE]))
        assert stored.answers[0].text == reader.read("who built it?", [PASSAGE]).answers[0].text


@pytest.mark.parametrize("rule", ["raw", "norm", "tanh"])
def test_naive_rules_are_scored_and_leave_no_reader(tmp_path, trained, rule: str, monkeypatch):
    # A reader would score the network under the calibrated rule.
    monkeypatch.setattr("btr.train.fid.evaluate_dev", Mock(side_effect=AssertionError))
    data = FidDataSettings((Source(trained / "questions.jsonl"),), passages=2, dev_share=0.2)
    settings = StageSettings("binarize", LOOP, 1500, recovery_weight=0.1, rule=rule)
    here = places(tmp_path, "btr", trained / "decomposed", trained / "plain")
    figures = train_fid(settings, data, here)
    assert {"questions_em", "questions_f1", "score"} <= figures.keys()
    lines = (tmp_path / "training" / "btr" / "log.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if "task" in line]
    assert all({"task", "recovery"} <= line.keys() for line in logged)
    assert not here.checkpoint.exists()


def test_an_adapted_reader_makes_the_same_bits(tmp_path, trained):
    data = FidDataSettings((Source(trained / "questions.jsonl"),), passages=2, dev_share=0.2)
    here = places(tmp_path, "btr", trained / "btr")
    loop = LoopSettings(epochs=2, lr=3e-2, warmup=2)
    train_fid(StageSettings("adapt", loop, 1500), data, here)
    before, after = (T5Reader.from_pretrained(f) for f in (trained / "btr", here.checkpoint))
    assert before.fingerprint == after.fingerprint
    rows = [reader.encode([PASSAGE])[0].rows.tobytes() for reader in (before, after)]
    assert rows[0] == rows[1]
    joint = [
        reader.network.blocks[3].layer[1].DenseReluDense.wo.weight for reader in (before, after)
    ]
    assert not torch.equal(*joint)


@pytest.mark.parametrize("stage", ["reader", "binarize", "adapt"])
def test_what_is_trained_again_is_not_calibrated(t5_tok, stage: str):
    network = SplitT5(tiny_t5(t5_tok), 0)
    mode = "plain" if stage == "reader" else "btr"
    found = replace(CONFIG, mode=mode, calibration=(1.0, 0.5))
    settings = StageSettings(stage, LOOP)
    assert _config_of(settings, found, None, None, network, Path()).calibration is None


def test_a_vocabulary_whose_ids_have_no_place_beside_the_bits_is_refused(t5_tok, monkeypatch):
    network = SplitT5(tiny_t5(t5_tok), 2)
    settings, found = StageSettings("binarize", LOOP, rule="words"), replace(CONFIG, split_layer=2)
    found = replace(found, mode="decomposed")
    assert _config_of(settings, found, None, None, network, Path()).rule == "words"
    monkeypatch.setattr("btr.train.word_fit.MOST_IDS", 40)
    with pytest.raises(UsageError, match="smaller vocabularies; expected 40 tokens at most"):
        _config_of(settings, found, None, None, network, Path())


def test_words_are_fitted_to_states_and_bits_to_the_rest(t5_tok):
    network = SplitT5(tiny_t5(t5_tok), 2, binarized=True, words=WordResidual(32))
    draw = np.random.default_rng(0)
    passages = [draw.integers(5, 60, 40).astype(np.int32) for _ in range(60)]
    fit_words(network.words, *some_states(network, passages[:50]))
    errors = {"calibrated": 0.0, "expected": 0.0, "restored": 0.0}
    with torch.no_grad():
        for ids in map(torch.from_numpy, passages[50:]):
            hidden = network.run_lower(ids.long(), [len(ids)])
            wanted = rms_norm(network.next_norm, hidden)
            expected = network.words.expected(network.model.shared(ids.long()))
            made = {
                "calibrated": hard_sign(wanted),
                "expected": expected,
                "restored": network.words.restore(hard_sign(wanted - expected), expected),
            }
            for name, restored in made.items():
                errors[name] += (restored - wanted).square().sum().item()
    assert errors["restored"] < 0.6 * errors["calibrated"]
    assert errors["restored"] < 0.6 * errors["expected"]


@pytest.mark.parametrize("words", [False, True])
def test_stored_states_train_like_those_made_on_the_way(t5_tok, words: bool):
    """The pass over rows gives the logits of the pass over token ids."""
    restorer = WordResidual(32) if words else None
    network = SplitT5(tiny_t5(t5_tok), 2, binarized=True, words=restorer).eval()
    data = some_data()
    engine = FidEngine(network, scale="rms16", query_budget=BUDGET)
    run = TrainingPass(network, BUDGET)
    with torch.no_grad():
        made = run(collate(data, data.examples)).logits
        rows = engine.encode([ids.tolist() for ids in data.passages])
        data.stored = Mock(
            rows=lambda numbers: StoredRows(np.concatenate([rows[i] for i in numbers]), None)
        )
        stored = run(collate(data, data.examples)).logits
    torch.testing.assert_close(made, stored, rtol=0.01, atol=0.05)


def test_training_learns(tmp_path, base):
    questions = write_questions(tmp_path / "questions.jsonl")
    data = FidDataSettings((Source(questions),), passages=1, dev_share=0.2)
    loop = LoopSettings(epochs=3, lr=1e-2, warmup=2)
    settings = StageSettings("reader", loop, 400, dropout=0.0)
    train_fid(settings, data, places(tmp_path, "plain", base), config=CONFIG)
    lines = (tmp_path / "training" / "plain" / "log.jsonl").read_text().splitlines()
    losses = [line["task"] for line in map(json.loads, lines) if "task" in line]
    assert losses[-1] < 0.2 * losses[0]


def test_wrong_starts_are_named(tmp_path, base):
    questions = write_questions(tmp_path / "questions.jsonl", 10)
    data = FidDataSettings((Source(questions),), dev_share=0.2)
    here = places(tmp_path, "out", base)
    with pytest.raises(UsageError, match="give --plain"):
        train_fid(StageSettings("decompose", LOOP, state_weight=1), data, here, layout=(2, 2))
    with pytest.raises(UsageError, match="starts from a decomposed checkpoint"):
        train_fid(StageSettings("binarize", LOOP), data, here)
    with pytest.raises(UsageError, match=r"sum to 4.*give --layout 3\+1"):
        train_fid(StageSettings("decompose", LOOP), data, here, layout=(2, 1))
    # "question:" alone is more than that.
    small = replace(CONFIG, query_budget=4)
    with pytest.raises(UsageError, match=r"no room for a question: .*base0; expected at least \d+"):
        train_fid(StageSettings("reader", LOOP), data, here, config=small)
    small = replace(CONFIG, answer_budget=2, answer_prompt="<extra_id_0>")
    with pytest.raises(UsageError, match=r"no room for an answer; expected at least 3"):
        train_fid(StageSettings("reader", LOOP), data, here, config=small)
    nothing = FidDataSettings((Source(questions),), dev_share=0)
    with pytest.raises(InputError, match="no question was held out"):
        train_fid(StageSettings("reader", LOOP), nothing, here)


def test_tied_embeddings_stay_tied(tmp_path, t5_tok):
    tiny_t5(t5_tok, "v1.0", wild=False).save_pretrained(tmp_path / "base")
    t5_tok.save_pretrained(tmp_path / "base")
    questions = write_questions(tmp_path / "questions.jsonl", 20)
    data = FidDataSettings((Source(questions),), passages=1, dev_share=0.2)
    train_fid(StageSettings("reader", LOOP, 300), data,
              places(tmp_path, "plain", tmp_path / "base"), config=CONFIG)  # fmt: skip
    network, _, _ = load_network(tmp_path / "plain")
    before, _, _ = load_network(tmp_path / "base")
    assert network.model.lm_head.weight is network.model.shared.weight
    assert not torch.equal(network.model.shared.weight, before.model.shared.weight)
