"""A decoder whose cross-attention is worked out writes the token where an answer begins."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.errors import IncompatibleError
from btr.train.copying import begin_with_copying

WIDTH, WORDS = 64, 50


def model_of(head_width: int = 16) -> T5ForConditionalGeneration:
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


def test_the_first_token_is_the_one_where_an_answer_begins():
    model = model_of()
    random = torch.Generator().manual_seed(1)
    mixed = torch.randn(WIDTH, WIDTH, generator=random) / 8
    says = torch.randn(WIDTH, generator=random)
    tokens = torch.randint(3, WORDS, (200, 30), generator=random)
    logits = 2 * torch.randn(tokens.shape, generator=random)
    begins = torch.randint(30, (200,), generator=random)
    logits[torch.arange(200), begins] += 12
    with torch.no_grad():
        states = model.shared(tokens) @ mixed + 0.3 * logits[..., None] * says
        states += 0.05 * torch.randn(states.shape, generator=random)
        wanted = tokens[torch.arange(200), begins]

        def right() -> float:
            written = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states[100:]),
                decoder_input_ids=torch.zeros(100, 1, dtype=torch.long),
            ).logits[:, 0]
            return float((written.argmax(-1) == wanted[100:]).float().mean())

        assert right() < 0.2
        begin_with_copying(
            model, states[:100].flatten(0, 1), tokens[:100].flatten(), logits[:100].flatten()
        )
        assert right() > 0.9


def test_heads_that_are_not_as_wide_as_the_model_are_refused():
    with pytest.raises(IncompatibleError, match="copy"):
        begin_with_copying(
            model_of(8), torch.zeros(3, WIDTH), torch.tensor([3, 4, 5]), torch.zeros(3)
        )
