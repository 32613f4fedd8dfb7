"""A T5 made from a BERT: shapes, copied weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertModel

from btr.models import resolve
from btr.readers.bert_text import load_tokenizer
from btr.readers.t5_checkpoint import T5ReaderConfig, load_network, save_checkpoint
from btr.readers.t5_network import SplitT5
from btr.train.t5_from_bert import FURTHER_HEADS, t5_from_bert
from tiny_readers import tiny_model


@pytest.fixture
def bert(tokenizer) -> BertModel:
    return tiny_model(tokenizer).bert.eval()


def test_matrices_are_the_berts(bert):
    inner = bert.config.intermediate_size // 2
    model = t5_from_bert(bert, decoder_layers=2, inner=inner, end_token=3)
    assert model.config.num_layers == bert.config.num_hidden_layers
    assert torch.equal(model.shared.weight, bert.embeddings.word_embeddings.weight)
    assert model.lm_head.weight is model.shared.weight
    keys = bert.encoder.layer[-2].attention.self.key.weight
    found = model.decoder.block[0].layer[0].SelfAttention.k.weight
    # The further heads come after the BERT's.
    assert torch.equal(found[: len(keys)], keys)
    assert len(found) == len(keys) + FURTHER_HEADS * model.config.d_kv
    last = bert.encoder.layer[-1].attention.self.value.weight
    found = model.decoder.block[1].layer[1].EncDecAttention.v.weight
    assert torch.equal(found[: len(last)], last)
    kept = model.decoder.block[0].layer[2].DenseReluDense.wi.weight
    all_of_them = bert.encoder.layer[-2].intermediate.dense.weight
    assert kept.shape[0] == inner
    assert all(any(torch.equal(row, other) for other in all_of_them) for row in kept)


def test_a_token_can_stand_out(bert):
    model = t5_from_bert(bert, decoder_layers=2, inner=16, end_token=3).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
    assert 0.5 < float(logits.std(-1).mean()) < 2


def test_packaged_embeddings_are_not_saved_again(tmp_path):
    """With the packaged BERT itself: the checkpoint leaves its embeddings to the package."""
    folder = Path(resolve("minilm-encoder"))
    model = t5_from_bert(
        BertModel.from_pretrained(folder, add_pooling_layer=False),
        decoder_layers=1,
        inner=8,
        end_token=102,
    )
    config = T5ReaderConfig(word_embeddings="minilm-encoder")
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = tokenizer.sep_token
    save_checkpoint(tmp_path / "c", SplitT5(model, 0), tokenizer, config)
    size = (tmp_path / "c" / "model.safetensors").stat().st_size
    others = sum(p.numel() for p in model.parameters()) - model.shared.weight.numel()
    assert size < 2.2 * others
    loaded, _, read = load_network(tmp_path / "c")
    assert read == config
    assert torch.equal(loaded.model.shared.weight, model.shared.weight)
    assert loaded.model.lm_head.weight is loaded.model.shared.weight
