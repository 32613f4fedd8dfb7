"""What this machine is and what it does well: dtype, memory, a card for reports."""

from __future__ import annotations

import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def dtype_name(dtype: torch.dtype) -> str:
    """How a store's settings name a dtype, as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The inverse of :func:`dtype_name`, of the dtypes that readers compute in."""
    return {dtype_name(dtype): dtype for dtype in DTYPES.values()}[name]


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype() -> str:
    """Name of the faster dtype on this machine: bf16 where it is multiplied natively."""
    if default_device().type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able = torch.cpu.get_capabilities()
    if able["architecture"] == "x86_64":
        # oneDNN takes bf16 wherever there is AVX-512: without these at a third of fp32's speed.
        return "bf16" if able["avx512_bf16"] or able["amx_bf16"] else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (1e6 bytes), since the last reset."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def reset_peak_rss() -> None:
    """Count peak memory from now on, where the system lets a process do so (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def machine_card() -> dict[str, str | int]:
    """The machine as benchmark reports name it."""
    cpu = platform.processor()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "instructions": " ".join(f for f in known if f in flags),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }
