"""Other data sets' records as ours: SQuAD, TriviaQA, NQ-open, MMLU, DPR and Atlas, by their fields.

What has none of the foreign shapes comes back as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DPR_LISTS = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")


def as_fid(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record with ``answers``, ``ctxs`` and ``options`` as FiD and Atlas have them.

    - SQuAD: ``answers`` an object with ``text``; ``context`` and ``title`` are the passage.
    - TriviaQA: ``answer`` an object with ``value`` and ``aliases``.
    - NQ-open: ``answer`` a list.
    - MMLU: ``choices`` a list, ``answer`` the right one's number.
    - DPR: passages in ``positive_ctxs``, ``hard_negative_ctxs`` and ``negative_ctxs``, those with
      the answer first.
    - Atlas: passages in ``passages``; what it writes has the question in ``query``.
    """
    found = dict(fields)
    answers, answer = found.get("answers"), found.get("answer")
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        found["answers"] = list(dict.fromkeys(answers["text"]))
    if isinstance(found.get("choices"), list) and isinstance(answer, int):
        found["options"] = found.pop("choices")
        found["answer"] = chr(ord("A") + answer) if 0 <= answer < 26 else str(answer)
    elif isinstance(answer, list):
        found["answers"] = found.pop("answer")
    elif isinstance(answer, dict) and "value" in answer:
        aliases = answer.get("aliases")
        known = [answer["value"], *(aliases if isinstance(aliases, list) else [])]
        found["answers"] = list(dict.fromkeys(known))
        del found["answer"]
    if isinstance(found.get("context"), str) and "ctxs" not in found:
        found["ctxs"] = [{"text": found["context"], "title": found.get("title")}]
    lists = [found[name] for name in _DPR_LISTS if isinstance(found.get(name), list)]
    if lists and "ctxs" not in found:
        found["ctxs"] = [_with_id(passage) for part in lists for passage in part]
    if isinstance(found.get("passages"), list):
        found.setdefault("ctxs", found["passages"])
    if isinstance(found.get("query"), str) and "claim" not in found:
        found.setdefault("question", found["query"])
    if "id" not in found and found.get("question_id") is not None:
        found["id"] = found["question_id"]
    return found


def _with_id(passage: Any) -> Any:
    """A DPR passage, whose id has another name."""
    if isinstance(passage, dict) and "id" not in passage and "passage_id" in passage:
        return passage | {"id": passage["passage_id"]}
    return passage
