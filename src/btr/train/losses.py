"""Losses of the three training steps (method, section 4), as pure functions.

``B`` examples, ``S`` positions a span may start or end at (0 is "not answered here"), ``T`` tokens,
``d`` width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from btr.readers.joint_states import JointStates


def span_nll(start: Tensor, end: Tensor, mask: Tensor, spans: Tensor) -> Tensor:
    """Mean of ``-log sum_{(i, j) in spans} p_start(i) p_end(j)``, halved.

    The sum is over whole spans: with one sum for starts and one for ends, an answer that stands
    twice may begin at its first place and end at its second.

    Args:
        start: ``[B, S]`` float32 start logits.
        end: ``[B, S]`` float32 end logits.
        mask: ``[B, S]`` bool, positions that take part.
        spans: ``[B, M, 2]`` int64 first and last positions; rows with fewer repeat -1. At least one
            in every row.

    Returns:
        A scalar, the mean of a start's and an end's loss where there is one span.
    """
    lowest = torch.finfo(start.dtype).min
    log_start = functional.log_softmax(start.masked_fill(~mask, lowest), dim=1)
    log_end = functional.log_softmax(end.masked_fill(~mask, lowest), dim=1)
    places = spans.clamp_min(0)
    pairs = log_start.gather(1, places[..., 0]) + log_end.gather(1, places[..., 1])
    pairs = pairs.masked_fill(spans[..., 0] < 0, lowest / 4)
    return -torch.logsumexp(pairs, dim=1).mean() / 2


def answer_divergence(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean KL(teacher || student) of the distributions over ``S`` positions; logits ``[B, S]``.

    ``mask`` ``[B, S]`` says which positions take part: all without one.
    """
    if mask is not None:
        lowest = torch.finfo(student.dtype).min
        student, teacher = (logits.masked_fill(~mask, lowest) for logits in (student, teacher))
    log_student = functional.log_softmax(student, dim=1)
    log_teacher = functional.log_softmax(teacher, dim=1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def query_aware_tokens(
    probabilities: list[Tensor], query_mask: Tensor, passage_mask: Tensor, share: float
) -> Tensor:
    """The passage tokens that the teacher's query looks at most.

    Args:
        probabilities: Teacher's attention per joint layer, ``[B, H, Q + P, Q + P]``.
        query_mask: ``[B, Q]`` bool.
        passage_mask: ``[B, P]`` bool.
        share: Share of each passage's tokens to keep (paper: 0.5).

    Returns:
        ``[B, P]`` bool.
    """
    length = query_mask.shape[1]
    weight = query_mask[:, None, :, None].to(probabilities[0].dtype)
    layers = [(p[:, :, :length, length:] * weight).sum((1, 2)) for p in probabilities]
    attention = torch.stack(layers).float().sum(0)
    attention = attention.masked_fill(~passage_mask, -1.0)
    keep = (passage_mask.sum(1) * share).ceil().long().clamp_min(1)
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < keep[:, None]) & passage_mask


def query_aware_distillation(
    student: JointStates,
    teacher: JointStates,
    query_mask: Tensor,
    passage_mask: Tensor,
    share: float,
    *,
    relative: bool = False,
) -> Tensor:
    """Distance of the last joint layers' passage states, on tokens that the query looks at.

    Args:
        student: Of the network that is trained.
        teacher: Of the plain reader; the deeper one's first layers have no counterpart.
        query_mask: ``[B, Q]`` bool.
        passage_mask: ``[B, P]`` bool.
        share: As for :func:`query_aware_tokens`.
        relative: As for :func:`state_distance`.
    """
    depth, length = min(len(student.hidden), len(teacher.hidden)), query_mask.shape[1]
    tokens = query_aware_tokens(teacher.probabilities[-depth:], query_mask, passage_mask, share)
    mine, theirs = ([h[:, length:] for h in x.hidden[-depth:]] for x in (student, teacher))
    return state_distance(mine, theirs, tokens, relative=relative)


def state_distance(
    student: list[Tensor], teacher: list[Tensor], tokens: Tensor, *, relative: bool = False
) -> Tensor:
    """Mean squared error of joint-layer states on the chosen tokens.

    Args:
        student: Passage states per joint layer, ``[B, P, d]``.
        teacher: The same of the teacher's corresponding layers.
        tokens: ``[B, P]`` bool.
        relative: Divide a layer's error by the mean square of the teacher's states. A pre-norm
            network's states grow from layer to layer, so the last would be all that counts.
    """
    picked = tokens.nonzero(as_tuple=True)
    errors = [
        _squared_error(s[picked], t[picked], relative=relative)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def recovery_loss(h: Tensor, recovered: Tensor, mask: Tensor, *, relative: bool = False) -> Tensor:
    """``mean((h - (W b + c))^2)`` over real tokens.

    Args:
        h: ``[U, P, d]`` states before the binarizer.
        recovered: ``[U, P, d]``, ``W b + c``.
        mask: ``[U, P]`` bool.
        relative: Divide by the mean square of ``h``.
    """
    return _squared_error(recovered[mask], h[mask], relative=relative)


def _squared_error(found: Tensor, wanted: Tensor, *, relative: bool) -> Tensor:
    error = functional.mse_loss(found.float(), wanted.float())
    return error / wanted.detach().float().square().mean() if relative else error
