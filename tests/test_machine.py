"""What this machine does well."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btr.machine import default_dtype


@pytest.mark.parametrize(
    ("able", "chosen"),
    [
        ({"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
    ],
)
def test_bf16_is_chosen_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], chosen: str
) -> None:
    """oneDNN says of every AVX-512 that it does bf16, and converts where there is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = {"architecture": "x86_64", **able}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: card)
    assert default_dtype() == chosen
