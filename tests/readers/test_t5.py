"""The Fusion-in-Decoder reader against Hugging Face, against itself, and against its promises."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from btr.errors import CorruptError, UsageError
from btr.readers.base import SEARCHES, Merging, ReadOptions
from btr.readers.batches import Clock
from btr.readers.t5 import T5Reader
from btr.readers.t5_citations import find_words
from btr.readers.t5_decoder import Cache
from btr.readers.t5_generate import greedy
from btr.readers.t5_network import NO_MERGING, Restored
from tiny_readers import sure_guesses
from tiny_t5 import KINDS, LAYERS, make_t5, t5_tokenizer, tiny_t5

QUESTION = "When was the first bridge built?"
QUESTIONS = [QUESTION, "who was queen?", "where is the salt lake of the north"]
# Sums in another order, float32, weights that make logits of size 10.
TOLERANCE = {"rtol": 1e-4, "atol": 2e-4}
ATLAS = {
    "query_template": "question: {question} answer: <extra_id_0>",
    "answer_prompt": "<extra_id_0>",
    "query_budget": 48,
}


@pytest.fixture(scope="module")
def tokenizer():
    return t5_tokenizer()


@pytest.fixture(scope="module")
def readers(tmp_path_factory, tokenizer) -> dict[str, T5Reader]:
    folder = tmp_path_factory.mktemp("t5")
    return {
        mode: make_t5(folder / mode, tokenizer, mode, 0 if mode == "plain" else 2)
        for mode in ("plain", "decomposed", "btr")
    }


def encode_with_hugging_face(reader: T5Reader, model, question, passages, gap: int = 0):
    """FiD by Hugging Face alone: each concatenation encoded, the states joined.

    With ``gap`` the query is filled up to that many tokens, the filling masked.
    """
    states = []
    query, _ = reader.text.query(question, reader.config.query_budget)
    for passage in passages:
        ids = reader.text.passage(passage.title, passage.text, reader.config.passage_budget).ids
        fill = max(0, gap - len(query))
        mask = torch.tensor([[1] * len(query) + [0] * fill + [1] * len(ids)])
        row = torch.tensor([[*query, *[0] * fill, *ids]])
        hidden = model.encoder(input_ids=row, attention_mask=mask).last_hidden_state
        states.append(hidden[0, mask[0].bool()])
    return torch.cat(states)[None]


def in_reading_order(reader: T5Reader, passages):
    key = lambda p: (-len(reader._tokens(p).ids), p.id)  # noqa: E731
    return sorted(passages, key=key)


def memory_of(reader: T5Reader, question, passages, merging=NO_MERGING):
    """What the encoder makes of a question, and what the decoder looks at."""
    engine = reader.engine
    with torch.inference_mode():
        query, _ = reader.text.query(question, reader.config.query_budget)
        states = reader.network.run_lower(torch.tensor(query), [len(query)])
        given = reader._inputs(passages, None, Clock())
        first = len(query) if engine.query_budget is None else engine.query_budget
        (packed,) = reader.network.run_joint([states], [given.states], [first], merging)
        return packed, engine.decoder.remember(packed, merging)


def logits_of(reader: T5Reader, memory, ids):
    decoder = reader.engine.decoder
    with torch.inference_mode():
        hidden = decoder.run(torch.tensor([ids]), 0, Cache(decoder, 1, len(ids)), [memory], [1])
        return decoder.logits(hidden)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["budget", "concatenated"])
def test_plain_equals_hugging_face(tmp_path, tokenizer, passages, kind, positions):
    reader = make_t5(tmp_path / "r", tokenizer, "plain", 0, kind, positions=positions)
    model = tiny_t5(tokenizer, kind)
    ordered = in_reading_order(reader, passages)
    for question in QUESTIONS:
        gap = reader.config.query_budget if positions == "budget" else 0
        with torch.inference_mode():
            theirs = encode_with_hugging_face(reader, model, question, ordered, gap)
        packed, memory = memory_of(reader, question, passages)
        torch.testing.assert_close(packed.hidden[None], theirs, **TOLERANCE)
        ids = [0, 5, 9, 30, 7]
        outputs = BaseModelOutput(last_hidden_state=theirs)
        with torch.inference_mode():
            wanted = model(encoder_outputs=outputs, decoder_input_ids=torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits_of(reader, memory, ids), wanted, **TOLERANCE)
        generated = model.generate(
            encoder_outputs=outputs, attention_mask=torch.ones(theirs.shape[:2]),
            max_new_tokens=8, do_sample=False, num_beams=1, use_cache=False,
        )  # fmt: skip
        ours = reader.read(question, passages)
        assert ours.answers[0].text.lower() == tokenizer.decode(
            generated[0], skip_special_tokens=True
        ).strip().lower()  # fmt: skip


def test_answers_are_not_all_the_same(readers, passages):
    texts = {readers["plain"].read(q, passages).answers[0].text for q in QUESTIONS}
    assert len(texts) > 1


@pytest.mark.parametrize("form", [{}, ATLAS], ids=["fid", "atlas"])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_beam_search_equals_hugging_face(tmp_path, tokenizer, passages, beams, form):
    """Texts, their order and their scores; one beam is greedy search."""
    for kind in KINDS:
        reader = make_t5(tmp_path / f"{kind}", tokenizer, "plain", 0, kind, **form)
        for question in QUESTIONS:
            check_beams(reader, tiny_t5(tokenizer, kind), tokenizer, question, passages, beams)


def check_beams(reader, model, tokenizer, question, passages, beams):
    ordered = in_reading_order(reader, passages)
    with torch.inference_mode():
        theirs = encode_with_hugging_face(
            reader, model, question, ordered, reader.config.query_budget
        )
    given = [0, *reader.prompt]
    assert len(given) == (2 if reader.config.answer_prompt else 1)
    out = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=theirs),
        attention_mask=torch.ones(theirs.shape[:2]), max_new_tokens=8, do_sample=False,
        decoder_input_ids=torch.tensor([given]), num_beams=beams, num_return_sequences=beams,
        return_dict_in_generate=True, output_scores=True, use_cache=False,
    )  # fmt: skip
    if beams == 1:
        searches = [ReadOptions(), ReadOptions(search="beam", beams=1)]
        scores = [model.compute_transition_scores(
            out.sequences, out.scores, normalize_logits=True
        ).mean()]  # fmt: skip
    else:
        searches, scores = [ReadOptions(search="beam", beams=beams)], out.sequences_scores
    wanted = [tokenizer.decode(s, skip_special_tokens=True).strip() for s in out.sequences]
    # To the end token, which also fills up; an answer that ran out of room has none.
    lengths = [min(8, [*s.tolist()[len(given) :], 1].index(1) + 1) for s in out.sequences]
    for options in searches:
        answers = reader.read(question, passages, top=beams, options=options).answers
        assert [a.text.lower() for a in answers] == [w.lower() for w in wanted]
        # Hugging Face ranks by the mean of a token, the end token among them.
        means = [math.log(a.probability) / n for a, n in zip(answers, lengths, strict=True)]
        assert means == pytest.approx([float(s) for s in scores], abs=1e-4)


def test_decomposed_with_nothing_below_the_cut_equals_plain(tmp_path, readers, tokenizer, passages):
    zero = make_t5(tmp_path / "zero", tokenizer, "decomposed", 0)
    plain = readers["plain"]
    for question in QUESTIONS:
        # float16 storage rounds the embeddings, here the only states below the cut.
        a, b = (memory_of(r, question, passages)[0].hidden for r in (plain, zero))
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        with torch.inference_mode():
            ids = torch.tensor(zero._tokens(passages[0]).ids)
            exact = Restored(zero.network.run_lower(ids, [len(ids)]))
            query = plain.network.model.shared(torch.tensor([4, 8]))
            (x,) = zero.network.run_joint([query], [[exact]], [16])
            (y,) = plain.network.run_joint([query], [[exact]], [16])
        assert torch.equal(x.hidden, y.hidden)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
@pytest.mark.parametrize("mode", ["decomposed", "btr"])
def test_every_cut_reads(tmp_path, tokenizer, passages, mode, layer):
    reader = make_t5(tmp_path / "r", tokenizer, mode, layer)
    assert reader.read(QUESTION, passages).answers


def test_the_cut_changes_something(readers, passages):
    a, b = (memory_of(readers[m], QUESTION, passages)[0].hidden for m in ("plain", "decomposed"))
    assert not torch.allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("mode", ["decomposed", "btr"])
def test_stored_states_answer_like_states_encoded_now(readers, passages, mode):
    reader = readers[mode]
    stored = reader.encode(passages)
    for question in QUESTIONS:
        a, b = reader.read(question, passages, stored), reader.read(question, passages)
        assert a.answers == b.answers


def test_what_a_store_guesses_takes_the_place_of_its_bits(readers, passages):
    """Sure guesses over inverted bits answer as the bits themselves."""
    reader = readers["btr"]
    stored = reader.encode(passages)
    guessed = [sure_guesses(state, 32) for state in stored]
    for question in QUESTIONS:
        a, b = reader.read(question, passages, stored), reader.read(question, passages, guessed)
        assert [x.text for x in a.answers] == [x.text for x in b.answers]
        for x, y in zip(a.answers, b.answers, strict=True):
            assert x.probability == pytest.approx(y.probability, rel=1e-3)


@pytest.mark.parametrize("scale", ["rms16", "rms8"])
def test_bits_are_the_method(tmp_path, tokenizer, passages, scale):
    """Stored rows against section 3, written down again here."""
    reader = make_t5(tmp_path / "r", tokenizer, "btr", 2, scale=scale)
    norm = reader.network.next_norm
    (state,) = reader.encode(passages[:1])
    ids = reader._tokens(passages[0]).ids
    assert state.rows.shape == (len(ids), 32 // 8 + {"rms16": 2, "rms8": 1}[scale])
    (restored,) = reader.engine.restore([state.rows])
    with torch.inference_mode():
        h = reader.network.run_lower(torch.tensor(ids), [len(ids)]).double()
        r = 1 / torch.sqrt(h.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        w = norm.weight.double()
        b = torch.where(w * h * r > 0, 1.0, -1.0).double()
        h_hat = b / (w * r)
    assert torch.equal(restored.normed.double(), b)
    # A root in float16 is at most 2^-11 off, on the log scale half a step.
    error = 2**-10 if scale == "rms16" else 2 ** (1 / 24) - 1 + 1e-4
    torch.testing.assert_close(restored.residual.double(), h_hat, rtol=error, atol=0)


def test_bits_of_what_words_leave_unsaid(tmp_path, tokenizer, passages):
    """Rows with ids, and what is made of them, written down again here."""
    reader = make_t5(tmp_path / "r", tokenizer, "btr", 2, rule="words")
    plain = make_t5(tmp_path / "p", tokenizer, "btr", 2)
    assert reader.store_kind == "bits+rms16+ids"
    assert reader.fingerprint["scale"] != plain.fingerprint["scale"]
    assert reader.fingerprint["lower_weights"] != plain.fingerprint["lower_weights"]
    (state,) = reader.encode(passages[:1])
    ids = list(reader._tokens(passages[0]).ids)
    assert state.rows.shape == (len(ids), 32 // 8 + 2 + 2)
    assert state.rows[:, 6:].copy().view("<u2")[:, 0].tolist() == ids
    # The scale is that of the method.
    assert np.array_equal(state.rows[:, 4:6], plain.encode(passages[:1])[0].rows[:, 4:])
    words, norm = reader.network.words, reader.network.next_norm
    (restored,) = reader.engine.restore([state.rows])
    with torch.inference_mode():
        e = reader.network.model.shared.weight[ids]
        e = e / e.square().mean(1, keepdim=True).sqrt()
        mean = e @ words.mean.weight.T + words.mean.bias
        h = reader.network.run_lower(torch.tensor(ids), [len(ids)])
        r = 1 / torch.sqrt(h.square().mean(1, keepdim=True) + norm.variance_epsilon)
        bits = torch.where(norm.weight * h * r > mean, 1.0, -1.0)
        y = mean + bits @ words.bits.weight.T
    assert np.array_equal(np.packbits((bits > 0).numpy(), axis=1), state.rows[:, :4])
    torch.testing.assert_close(restored.normed, y, **TOLERANCE)
    # The stored root is a half float.
    torch.testing.assert_close(restored.residual, y / (norm.weight * r), rtol=2e-3, atol=1e-3)
    stored = reader.encode(passages)
    for question in QUESTIONS:
        a, b = reader.read(question, passages, stored), reader.read(question, passages)
        assert a.answers == b.answers
    rows = state.rows.copy()
    rows[3, -2:] = 255
    with pytest.raises(CorruptError, match="a stored token that the reader does not have"):
        reader.engine.restore([rows])


def test_a_checkpoint_without_what_restores_is_refused(tmp_path, tokenizer):
    for rule, name in (("words", "calibrated"), ("calibrated", "words")):
        folder = tmp_path / rule
        make_t5(folder, tokenizer, "btr", 2, rule=rule)
        (folder / "digests.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        config["btr"]["rule"] = name
        (folder / "config.json").write_text(json.dumps(config))
        fault = "does not belong" if rule == "words" else "is missing"
        with pytest.raises(CorruptError, match=rf"tensor {fault}: bits\.weight"):
            T5Reader.from_pretrained(folder)


def test_btr_at_layer_n_lets_the_decoder_look_at_bits(tmp_path, tokenizer, passages):
    reader = make_t5(tmp_path / "r", tokenizer, "btr", LAYERS)
    packed, _ = memory_of(reader, QUESTION, passages[:1])
    query, _ = reader.text.query(QUESTION, 16)
    assert set(packed.hidden[len(query) :].unique().tolist()) == {-1.0, 1.0}


def test_a_norm_weight_near_zero_is_guarded(tmp_path, tokenizer, passages):
    reader = make_t5(tmp_path / "r", tokenizer, "btr", 2)
    with torch.no_grad():
        reader.network.next_norm.weight[:2] = torch.tensor([0.0, -1e-20])
    restored = reader.engine.restore([s.rows for s in reader.encode(passages)])
    assert restored
    for part in restored:
        assert part.residual.isfinite().all()
        assert part.residual[:, :2].abs().amax() < 30 * part.residual[:, 2:].abs().amax()


@pytest.mark.parametrize("mode", ["plain", "decomposed", "btr"])
def test_a_merging_ratio_of_nothing_equals_no_merging(readers, passages, mode):
    reader = readers[mode]
    nothing = Merging(intra=1e-6, cross=1e-6, every=2)
    assert bool(nothing)
    a = memory_of(reader, QUESTION, passages)
    b = memory_of(reader, QUESTION, passages, nothing)
    assert torch.equal(a[0].hidden, b[0].hidden)
    for x, y in zip(a[1].keys + a[1].values, b[1].keys + b[1].values, strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(
        logits_of(reader, a[1], [0, 4, 7]), logits_of(reader, b[1], [0, 4, 7]), **TOLERANCE
    )


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("correction", [True, False])
def test_merging_shortens_what_the_method_says(readers, passages, weighted, correction):
    reader = readers["btr"]
    before = memory_of(reader, QUESTION, passages)[0]
    merging = Merging(0.2, 0.3, 2, weighted=weighted, correction=correction)
    packed, memory = memory_of(reader, QUESTION, passages, merging)
    lengths = before.lengths
    for _ in range(LAYERS - reader.split_layer):
        lengths = tuple(n - int(0.2 * n + 1e-9) for n in lengths)
    assert packed.lengths == memory.lengths == lengths
    # Nothing is lost: every token stands for itself or is in a group.
    for part, n in zip(torch.split(packed.sizes, list(lengths)), before.lengths, strict=True):
        assert part.sum() == n
    total, wanted = sum(lengths), []
    for layer in range(LAYERS):
        if layer and layer % 2 == 0:
            total -= int(0.3 * total + 1e-9)
        wanted.append(total)
    assert [k.shape[1] for k in memory.keys] == wanted == [v.shape[1] for v in memory.values]
    assert all((bias is not None) == correction for bias in memory.biases)
    assert reader.read(QUESTION, passages, options=ReadOptions(merging)).answers


def test_correction_makes_merged_copies_count_as_before(readers, passages):
    """Merging equal tokens changes nothing if the merged one counts as often as they did."""
    reader = readers["plain"]
    packed, _ = memory_of(reader, QUESTION, passages[:1])
    twice = type(packed)(
        packed.hidden.repeat_interleave(2, 0), tuple(2 * n for n in packed.lengths),
        packed.positions.repeat_interleave(2), packed.sizes.repeat_interleave(2),
    )  # fmt: skip
    halved = type(packed)(packed.hidden, packed.lengths, packed.positions, 2 * packed.sizes)
    a = reader.engine.decoder.remember(twice)
    b = reader.engine.decoder.remember(halved, Merging(intra=1e-6))
    torch.testing.assert_close(
        logits_of(reader, a, [0, 4, 7]), logits_of(reader, b, [0, 4, 7]), **TOLERANCE
    )


@pytest.mark.parametrize("mode", ["plain", "decomposed", "btr"])
@pytest.mark.parametrize("merging", [NO_MERGING, Merging(0.2, 0.2, 2)])
@pytest.mark.parametrize("search", SEARCHES)
def test_questions_together_are_answered_like_one_by_one(readers, passages, mode, merging, search):
    reader = readers[mode]
    given = [passages, passages[:2], passages[3:]]
    options = ReadOptions(merging, search)
    states = None if mode == "plain" else [reader.encode(p) for p in given]
    together = reader.read_many(QUESTIONS, given, states, options=options)
    for i, reading in enumerate(together):
        alone = reader.read(QUESTIONS[i], given[i], states and states[i], options=options)
        assert [a.text for a in reading.answers] == [a.text for a in alone.answers]
        for a, b in zip(reading.answers, alone.answers, strict=True):
            assert (a.passage, a.start, a.end) == (b.passage, b.start, b.end)
            assert a.probability == pytest.approx(b.probability, rel=1e-3)


def test_passage_order_never_changes_an_answer(readers, passages):
    for reader in readers.values():
        for merging in (NO_MERGING, Merging(0.2, 0.2, 2)):
            options = ReadOptions(merging)
            a = reader.read(QUESTION, passages, options=options)
            b = reader.read(QUESTION, passages[::-1], options=options)
            assert a.answers == b.answers


def test_extract_finds_the_likeliest_span(readers, passages):
    """Against the probability of every span, by the decoder run on each of them."""
    reader = readers["btr"]
    few = passages[1:3]
    options = ReadOptions(search="extract", longest=3)
    reading = reader.read(QUESTION, few, options=options, top=3)
    _, memory = memory_of(reader, QUESTION, few)
    best: dict[tuple[int, ...], float] = {}
    for passage in few:
        ids, offsets = reader.text.encode(passage.text)
        text = passage.text
        for a, b in itertools.combinations(range(len(ids) + 1), 2):
            first, last = offsets[a][0], offsets[b - 1][1]
            whole = (first == 0 or not (text[first - 1].isalnum() and text[first].isalnum())) and (
                last == len(text) or not (text[last - 1].isalnum() and text[last].isalnum())
            )
            span = tuple(ids[a:b])
            full = offsets[b - 1][0] < last
            if b - a <= 3 and whole and full and span not in best:
                log_probs = logits_of(reader, memory, [0, *span]).log_softmax(-1)
                best[span] = sum(float(log_probs[i, t]) for i, t in enumerate([*span, 1]))
    wanted = sorted(best.values(), reverse=True)[:3]
    found = [math.log(a.probability) for a in reading.answers]
    assert found == pytest.approx(wanted, abs=1e-3)
    for answer in reading.answers:
        assert answer.text == answer.passage.text[answer.start : answer.end]


def test_citations_name_passages_and_places(readers, passages):
    for mode, options in itertools.product(
        readers, (ReadOptions(), ReadOptions(Merging(0.2, 0.2, 2)), ReadOptions(search="extract"))
    ):
        for answer in readers[mode].read(QUESTION, passages, options=options).answers:
            assert {c.passage.id for c in answer.citations} == {p.id for p in passages}
            assert sum(c.weight for c in answer.citations) == pytest.approx(1, abs=1e-4)
            assert answer.passage == answer.citations[0].passage
            for c in answer.citations:
                if c.start is not None:
                    assert c.passage.text[c.start : c.end].lower() == answer.text.lower()


def test_forced_lengths(readers, passages):
    options = ReadOptions(longest=5, shortest=5)
    reader = readers["btr"]
    _, memory = memory_of(reader, QUESTION, passages)
    with torch.inference_mode():
        (one,) = greedy(reader.engine.decoder, [memory], longest=5, shortest=5)
    assert len(one.tokens) == 5
    assert reader.read(QUESTION, passages, options=options).answers


def test_float64_is_close_to_hugging_face_in_float64(tmp_path, tokenizer, passages):
    reader = make_t5(tmp_path / "r", tokenizer, "plain", 0, dtype=torch.float64)
    model = tiny_t5(tokenizer).double()
    ordered = in_reading_order(reader, passages)
    with torch.inference_mode():
        theirs = encode_with_hugging_face(reader, model, QUESTION, ordered, 16)
    packed, _ = memory_of(reader, QUESTION, passages)
    # Hugging Face's norm sums in float32 whatever the dtype.
    torch.testing.assert_close(packed.hidden[None], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["plain", "btr"])
def test_choices_get_their_shares_of_the_decoders_probability(readers, tokenizer, passages, mode):
    reader, choices = readers[mode], ("king Harald", "salt", "1172", "the wide salt lake")
    reading = reader.read(QUESTION, passages, options=ReadOptions(choices=choices))
    _, memory = memory_of(reader, QUESTION, passages)
    sums = []
    for choice in choices:
        ids = reader.text.encode(choice)[0]
        logits = logits_of(reader, memory, [0, *ids])
        wanted = torch.tensor([*ids, 1])
        sums.append(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
    shares = dict(zip(choices, torch.stack(sums).softmax(0).tolist(), strict=True))
    assert {a.text for a in reading.answers} == set(choices)
    assert sum(a.probability for a in reading.answers) == pytest.approx(1, abs=1e-5)
    for answer in reading.answers:
        assert answer.probability == pytest.approx(shares[answer.text], rel=1e-3)
        assert answer.start is None
        assert len(answer.citations) == len(passages)
    best = reader.read(QUESTION, passages, options=ReadOptions(choices=choices), top=1)
    assert [a.text for a in best.answers] == [max(shares, key=shares.get)]


def test_bad_calls(readers, passages):
    plain, btr = readers["plain"], readers["btr"]
    with pytest.raises(UsageError, match="no states to store"):
        plain.encode(passages)
    with pytest.raises(UsageError, match="states do not fit"):
        plain.read(QUESTION, passages, btr.encode(passages))
    with pytest.raises(UsageError, match="states do not fit"):
        btr.read(QUESTION, passages, btr.encode(passages[:1]))
    for options, what in (
        (ReadOptions(Merging(intra=0.6)), "ratio of intra"),
        (ReadOptions(Merging(cross=-0.1)), "ratio of cross"),
        (ReadOptions(Merging(cross=0.1, every=0)), "period"),
        (ReadOptions(search="sampling"), "search"),
        (ReadOptions(search="beam", beams=0), "beams"),
        (ReadOptions(longest=0), "longest"),
        (ReadOptions(choices=("yes",)), "choices"),
        (ReadOptions(choices=("yes", " ")), "choices"),
    ):
        with pytest.raises(UsageError, match=what):
            btr.read(QUESTION, passages, options=options)


def test_no_passages_and_long_questions(readers, passages):
    reader = readers["btr"]
    assert reader.read(QUESTION, []).answers == ()
    reading = reader.read("when was it " * 30, passages)
    assert reading.question_cut
    assert reading.answers
    assert not reader.read("when?", passages).question_cut
    mixed = reader.read_many(["when?", "who?"], [[], passages])
    assert not mixed[0].answers
    assert mixed[1].answers


@pytest.mark.parametrize("mode", ["plain", "decomposed", "btr"])
def test_questions_together_are_answered_like_one_by_one_in_bf16(
    tmp_path, tokenizer, passages, mode
):
    """Greedy; equal to the bit on the CPUs tried, but kernels may sum more rows in another order.

    So probabilities get the 8 bits of a bfloat16.
    """
    split = 0 if mode == "plain" else 2
    reader = make_t5(tmp_path / "r", tokenizer, mode, split, dtype=torch.bfloat16)
    given = [passages, passages[:2], passages[3:]]
    for question, few, together in zip(
        QUESTIONS, given, reader.read_many(QUESTIONS, given), strict=True
    ):
        (one,), (same,) = reader.read(question, few).answers, together.answers
        assert (same.text, same.passage, same.start) == (one.text, one.passage, one.start)
        assert same.probability == pytest.approx(one.probability, rel=2**-5)


def test_bf16_and_its_rows(tmp_path, tokenizer, passages):
    reader = make_t5(tmp_path / "r", tokenizer, "btr", 2, dtype=torch.bfloat16)
    assert reader.dtype == torch.bfloat16
    stored = reader.encode(passages)
    assert (
        reader.read(QUESTION, passages, stored).answers == reader.read(QUESTION, passages).answers
    )
    assert all(s.rows.dtype == np.uint8 for s in stored)


@pytest.mark.parametrize(
    ("answer", "passage", "found"),
    [
        ("king harald", "Built by King  Harald.", "King  Harald"),
        ("3 . 5 km", "It is 3.5 km long.", "3.5 km"),
        ("ada", "Canada and Ada.", "Ada"),
        ("Ada", "Canada", None),
        ("c++", "Written in C++.", "C++"),
        ("", "Anything.", None),
        ("straße (old)", "The STRASSE (old) is the Straße (old).", "Straße (old)"),
    ],
)
def test_answers_are_found_as_words(answer, passage, found):
    place = find_words(answer, passage)
    assert (place and passage[slice(*place)]) == found
