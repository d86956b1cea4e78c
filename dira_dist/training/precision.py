"""In which precision a run computes: as asked for, or settled by what all of its workers have."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]
PrecisionChoice = Literal["auto", "bf16", "fp32"]

_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86-64 (AVX-512 BF16, AMX) and of 64-bit Arm, as Linux names them."""


def native_bf16(device: torch.device) -> bool:
    """Whether the device itself multiplies bfloat16; emulated it is slower than float32.

    GPUs do from compute capability 8.0 on. Of a processor that Linux does not describe nothing is assumed.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            on_gpu: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return on_gpu
    return device.type == "cpu" and every_core_has_bf16(_cpuinfo())


def every_core_has_bf16(cpuinfo: str) -> bool:
    """Whether each processor in the text of ``/proc/cpuinfo`` has an instruction that multiplies bfloat16."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    cores = [set(flags.split()) for name, _, flags in lines if name.strip() in ("flags", "Features")]
    return bool(cores) and all(core & _CPU_FLAGS for core in cores)


def settle(native: Iterable[bool]) -> Precision:
    """What ``auto`` is at a run's first start: bf16 where :func:`native_bf16` holds on every worker.

    One that emulates it would keep all others waiting.
    """
    return "bf16" if all(native) else "fp32"


def resolve(choice: PrecisionChoice | None, device: torch.device) -> Precision:
    """The precision of one worker by itself; left out, GPUs that have bf16 compute in it and processors never."""
    if choice == "auto":
        return settle([native_bf16(device)])
    return choice or ("bf16" if device.type == "cuda" and native_bf16(device) else "fp32")


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""
