"""Tiny random T5s of every kind with a real Unigram tokenizer, as Hugging Face has them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from btr.binarize import WordResidual
from btr.readers.t5 import T5Reader
from btr.readers.t5_checkpoint import T5ReaderConfig, save_checkpoint
from btr.readers.t5_network import SplitT5
from tiny_readers import TEXTS, WORDS

LAYERS = 4
KINDS = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    # Flan-T5 has the shape of v1.1; a decoder of another depth is its own case (Flan-T5 small).
    "flan": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_decoder_layers": 5,
    },
}


def t5_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer with T5's special tokens, trained on the test passages."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    # Real T5s may join a mark to a word; here every word of the texts is a span of its own.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    words = "question: title: context: What When 1172 salt lake"
    lines = [f"{title} {text}" for title, text in TEXTS] * 3 + [" ".join(WORDS), words] * 5
    backend.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=["<extra_id_0>", "<extra_id_1>"],
    )  # fmt: skip


def tiny_t5(
    tokenizer: PreTrainedTokenizerFast, kind: str = "v1.1", seed: int = 0, *, wild: bool = True
) -> T5ForConditionalGeneration:
    """A random T5; ``wild`` weights make answers that differ, others are for training."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=4,
        relative_attention_num_buckets=16, relative_attention_max_distance=40,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=1.0,
        **KINDS[kind],
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    if not wild:
        return model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            elif "relative_attention_bias" in name:
                weight.copy_(torch.randn_like(weight))
            else:
                # Large enough that answers differ and the question matters.
                weight.mul_(1.5)
        if KINDS[kind]["tie_word_embeddings"] is False:
            head = torch.randn_like(model.lm_head.weight)
            model.lm_head.weight = torch.nn.Parameter(head)
    return model


def make_t5(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    mode: str,
    split_layer: int,
    kind: str = "v1.1",
    dtype: torch.dtype = torch.float32,
    **settings: object,
) -> T5Reader:
    model, words = tiny_t5(tokenizer, kind), None
    if settings.get("rule") == "words":
        words = WordResidual(model.config.d_model)
    network = SplitT5(model, split_layer, binarized=mode == "btr", words=words)
    config = T5ReaderConfig(
        mode,
        split_layer,
        **{"query_budget": 16, "passage_budget": 80, "answer_budget": 8} | settings,
    )
    save_checkpoint(folder, network, tokenizer, config, dtype=torch.float32)
    return T5Reader.from_pretrained(folder, dtype=dtype)
