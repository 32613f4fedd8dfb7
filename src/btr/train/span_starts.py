"""What each step of an extractive reader starts from, and what of it is trained."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from transformers import BertForQuestionAnswering
from transformers.models.bert.modeling_bert import BertLayer

from btr.binarize import PostNormBinarizer, WordResidual
from btr.errors import UsageError
from btr.readers.bert_checkpoint import load_config, load_network
from btr.readers.bert_network import SplitBert, bert_layers
from btr.readers.checkpoint import quiet_transformers, read_config
from btr.train.rules import Rule
from btr.train.span_examples import SpanData, collate
from btr.train.stage import StageSettings
from btr.train.word_fit import check_vocabulary, fit_words

EMBEDDINGS = "model.bert.embeddings.word_embeddings.weight"


def start_reader(folder: Path, query_budget: int) -> SplitBert:
    """Step 1 starts from a pretrained BERT with a new span head, or from an extractive reader.

    Raises:
        UsageError: The checkpoint is a split reader.
    """
    if "btr" in read_config(folder):
        return load_mode(folder, "plain", "reader")
    with quiet_transformers():
        model = BertForQuestionAnswering.from_pretrained(folder)
    return SplitBert(model, 0, query_budget)


def load_mode(folder: Path, mode: str, stage: str) -> SplitBert:
    """The network of a checkpoint that has to be of a mode.

    Raises:
        UsageError: It is of another.
    """
    network, _, config = load_network(folder)
    if config.mode != mode:
        raise UsageError(f"step {stage} needs a {mode} checkpoint", where=str(folder),
                         found=config.mode)  # fmt: skip
    return network


def start_teacher(
    folder: Path, settings: StageSettings, query_budget: int, labels: tuple[str, ...]
) -> SplitBert:
    """The plain reader, which must see and, if its answers count, say what the other one does.

    Raises:
        UsageError: It has another query budget or other classes, or is no plain reader.
    """
    taught = load_config(folder)
    if taught.query_budget != query_budget:
        raise UsageError("the teacher has another query budget", where=str(folder),
                         expected=str(query_budget), found=str(taught.query_budget),
                         todo="give the checkpoint of step 1")  # fmt: skip
    if settings.answer_weight and taught.labels != labels:
        raise UsageError("the teacher tells other classes", where=str(folder),
                         expected=", ".join(labels) or "none", found=", ".join(taught.labels),
                         todo="train step reader on this task, or give --answer-weight 0",
                         )  # fmt: skip
    return load_mode(folder, "plain", settings.stage)


def start_decomposed(plain: SplitBert, lower: int, joint: int) -> SplitBert:
    """Step 2 starts from the plain reader.

    With ``n`` its layers, the joint part is its last ``joint`` layers and the lower part the
    ``n - joint`` before them (the paper's split), cut or followed by layers that start close to
    the identity so that ``lower`` is reached. Depth below the cut is free at query time.

    Raises:
        UsageError: There are not 1 to ``n`` joint layers; without any, a question would never meet
            its passages.
    """
    layers = bert_layers(plain.model)
    if not 1 <= joint <= len(layers):
        raise UsageError("no such layout", expected=f"1 to {len(layers)} joint layers",
                         found=f"{lower}+{joint}", todo="give another --layout")  # fmt: skip
    first = len(layers) - joint
    below = layers[:first][:lower]
    added = layers[max(0, len(below) - 1)]
    chosen = [*below, *[added] * (lower - len(below)), *layers[first:]]
    config = copy.deepcopy(plain.model.config)
    config.num_hidden_layers = lower + joint
    model = BertForQuestionAnswering(config)
    model.bert.embeddings.load_state_dict(plain.model.bert.embeddings.state_dict())
    model.qa_outputs.load_state_dict(plain.model.qa_outputs.state_dict())
    for mine, theirs in zip(bert_layers(model), chosen, strict=True):
        mine.load_state_dict(theirs.state_dict())
    last = below[-1].output if below else model.bert.embeddings
    for extra in bert_layers(model)[len(below) : lower]:
        make_near_identity(extra, last.LayerNorm)
    network = SplitBert(model, lower, plain.query_budget)
    network.classifier = copy.deepcopy(plain.classifier)
    return network


@torch.no_grad()
def make_near_identity(layer: BertLayer, norm: nn.LayerNorm) -> None:
    """Let a post-norm layer pass on what the layer before it, with this last norm, gives it.

    Attention and feed-forward add nothing at first. The norms then see ``gamma z + beta`` with
    ``z`` of variance 1 and give it back its own mean and spread over the dimensions.
    """
    for branch in (layer.attention.output, layer.output):
        nn.init.zeros_(branch.dense.weight)
        nn.init.zeros_(branch.dense.bias)
        spread = norm.weight.square().mean() + norm.bias.var(unbiased=False)
        branch.LayerNorm.weight.fill_(float(spread.sqrt()))
        branch.LayerNorm.bias.fill_(float(norm.bias.mean()))


@torch.no_grad()
def start_binarized(decomposed: SplitBert, data: SpanData, rule: Rule = "calibrated") -> SplitBert:
    """Step 3 starts from step 2, the binarizer from the least-squares fit on a sample of states.

    Rule "raw" is the paper's for post-norm networks: the signs themselves, nothing learned. Rule
    "words" is for bits of what words leave unsaid.

    Raises:
        UsageError: The rule is one for pre-norm networks, or the vocabulary too large for it.
    """
    if rule not in ("calibrated", "words", "raw"):
        raise UsageError("a rule for pre-norm networks", found=rule,
                         expected="calibrated, words or raw")  # fmt: skip
    network = copy.deepcopy(decomposed)
    network.binarizer = binarizer = PostNormBinarizer(network.model.config.hidden_size)
    if rule == "raw":
        return network
    batch = collate(data, data.examples[:: max(1, len(data.examples) // 256)][:256])
    real = batch.passage_mask
    states = network.encode_passage(batch.passage_ids, real)[real]
    if rule == "words":
        check_vocabulary(len(network.vocabulary.weight))
        network.binarizer = words = WordResidual(network.model.config.hidden_size)
        fit_words(words, network.vocabulary(batch.passage_ids[real]), states)
    else:
        binarizer.calibrate(states)
    return network


def choose_trained(network: SplitBert, settings: StageSettings, *, embeddings: bool) -> None:
    """Freeze what a step leaves as it is.

    Args:
        network: Of the step.
        settings: The step.
        embeddings: Whether word embeddings are trained.
    """
    network.requires_grad_(True)
    if settings.stage == "adapt":
        # All that stored states depend on; questions are read by the same layers.
        for part in (network.model.bert.embeddings, *network.lower):
            part.requires_grad_(False)
    if network.classifier is not None:
        # No loss looks at spans; processes that average gradients wait for every one that is due.
        network.model.qa_outputs.requires_grad_(False)
    if network.binarizer is not None:
        network.binarizer.requires_grad_(settings.rule != "raw")
    if network.words is not None and settings.stage == "adapt":
        network.words.mean.requires_grad_(False)
    if not embeddings:
        network.get_parameter(EMBEDDINGS).requires_grad_(False)
