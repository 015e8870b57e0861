"""What this machine does well."""

from __future__ import annotations

import time
from functools import cache

import torch

from .environment import processor


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for matrix products in bfloat16, and they are not merely emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch has no public name for it in the versions that are supported here.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


@cache
def multiplies_few_rows_best_plainly() -> bool:
    """Whether torch's plain float32 products of few rows outrun oneDNN's, here.

    MKL's do on the processors of its maker (by a third at 49 rows of 768 on a Xeon); on an AMD EPYC oneDNN's take 0.6
    to 0.85 of their time (docs/performance-inference.md).
    """
    return "Intel" in processor()


@cache
def matrix_rate(dtype: torch.dtype, threads: int, device: str = "cpu") -> float:
    """The most FLOP/s that a plain matrix product reaches (a multiply-accumulate is two FLOP), measured once.

    The product is a feed-forward layer of a Base model on 2048 frames, 768 → 3072; on an accelerator a larger one.
    """
    rows, inner, columns = (2048, 768, 3072) if device == "cpu" else (8192, 4096, 8192)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(columns, inner, device=device).to(dtype)
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            torch.mm(left, right.T)
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return 2 * rows * inner * columns / min(seconds)
