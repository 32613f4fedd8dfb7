"""A decoder whose cross-attention is worked out copies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.errors import IncompatibleError
from btr.train.copying import Seen, begin_with_copying
from btr.train.token_codes import token_codes

WIDTH, WORDS, HEAD = 64, 40, 16


def model_of(head_width: int = HEAD) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS,
            d_model=WIDTH,
            d_kv=head_width,
            num_heads=4,
            d_ff=64,
            num_layers=1,
            num_decoder_layers=2,
            tie_word_embeddings=True,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    ).eval()


def test_the_decoder_writes_where_an_answer_begins_and_goes_on():
    model = model_of()
    random = torch.Generator().manual_seed(1)
    mixed, behind = (torch.randn(n, WIDTH, generator=random) / n**0.5 for n in (WIDTH, HEAD))
    says = torch.randn(WIDTH, generator=random)
    # No token twice in a text, so that each has one place behind it.
    tokens = torch.stack([3 + torch.randperm(WORDS - 3, generator=random)[:20] for _ in range(200)])
    before = functional.pad(tokens[:, :-1], (1, 0), value=2)
    logits = 2 * torch.randn(tokens.shape, generator=random)
    begins = torch.randint(20, (200,), generator=random)
    logits[torch.arange(200), begins] += 12
    unseen = torch.arange(100, 200)
    with torch.no_grad():
        codes = token_codes(model.shared.weight, tokens.flatten(), 0, HEAD).short
        states = model.shared(tokens) @ mixed + 0.3 * logits[..., None] * says
        states += 8 * codes[before] @ behind
        states += 0.05 * torch.randn(states.shape, generator=random)

        def right(written: torch.Tensor, wanted: torch.Tensor) -> float:
            following = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states[unseen]),
                decoder_input_ids=written,
            ).logits[:, -1]
            return float((following.argmax(-1) == wanted).float().mean())

        start = torch.zeros(100, 1, dtype=torch.long)
        places = torch.arange(100) % 19
        first = (start, tokens[unseen, begins[unseen]])
        second = (torch.cat([start, tokens[unseen, places][:, None]], 1),
                  tokens[unseen, places + 1])  # fmt: skip
        assert right(*first) < 0.2
        assert right(*second) < 0.2
        flat = (x[:100].flatten(0, 1) for x in (states, tokens, before, logits))
        begin_with_copying(model, Seen(*flat), codes)
        assert right(*first) > 0.9
        assert right(*second) > 0.9


def test_heads_that_are_not_as_wide_as_the_model_are_refused():
    with pytest.raises(IncompatibleError, match="copy"):
        begin_with_copying(
            model_of(8),
            Seen(torch.zeros(3, WIDTH), torch.arange(3, 6), torch.arange(2, 5), torch.zeros(3)),
            torch.zeros(WORDS, 8),
        )
