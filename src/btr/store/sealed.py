"""Sealed JSON: small files of values in one canonical form, with a digest over every byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from btr.files import new_digest

_TRAILER = b'"\n}\n'
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=True, allow_nan=False).encode


def seal(values: Mapping[str, Any]) -> bytes:
    """JSON in its one canonical form, ending in the digest of all that comes before it.

    A line a key, and each value on its line: Python writes indented JSON ten times slower.
    """
    lines = [f' "{key}": {_encode(values[key])}' for key in sorted(values)]
    body = ("{\n" + ",\n".join([*lines, ' "digest": "'])).encode("ascii")
    digest = new_digest()
    digest.update(body)
    return body + digest.hexdigest().encode("ascii") + _TRAILER


def unseal(data: bytes) -> dict[str, Any]:
    """The values of sealed JSON, without the digest.

    Raises:
        ValueError: It is damaged, or not in the canonical form.
    """
    body, digits, trailer = data[: -64 - len(_TRAILER)], data[-68:-4], data[-len(_TRAILER) :]
    digest = new_digest()
    digest.update(body)
    if trailer != _TRAILER or digits != digest.hexdigest().encode("ascii"):
        raise ValueError("its content does not match its digest")
    # What ends in this trailer is an object, if it is JSON at all.
    values: dict[str, Any] = json.loads(data)
    values.pop("digest", None)
    return values
