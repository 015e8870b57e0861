"""What makes a training step faster without changing what it computes: compiling, types, memory."""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.weights import build
from ..encoder import Encoder, EncoderOutput
from ..kernels import OptimizedEncoder, optimize

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # names and numbers of glibc's malloc.h
KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1}
"""No block is mapped by itself, and none is returned."""
USUAL = {M_MMAP_MAX: 65_536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
"""What glibc's own thresholds grow to with use; set by hand, they grow no more."""


class Compiled:
    """An encoder to be called; as a compiled program where that is wanted and works.

    Not a module: its encoder's weights belong to who made it.
    """

    def __init__(self, encoder: Encoder | OptimizedEncoder, compiles: bool) -> None:
        self.encoder = encoder
        # Crops have any length: one program for all of them.
        self._program: Any = torch.compile(encoder, dynamic=True) if compiles else encoder
        self._masking: Any = torch.compile(encode_masked, dynamic=True) if compiles else encode_masked

    def __call__(
        self, waveforms_BT: Tensor, lengths_B: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> EncoderOutput:
        """As `Encoder.forward`; with a mask, as `encode_masked`."""
        if self._program is self.encoder:
            return self._run(self.encoder, encode_masked, waveforms_BT, lengths_B, mask_BT)
        try:
            return self._run(self._program, self._masking, waveforms_BT, lengths_B, mask_BT)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.ShortenTraceback) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("torch.compile failed (%s); continuing without it", reason[0])
            self._program = self.encoder
            return self._run(self.encoder, encode_masked, waveforms_BT, lengths_B, mask_BT)

    def _run(
        self, program: Any, masking: Any, waveforms_BT: Tensor, lengths_B: Tensor | None, mask_BT: Tensor | None
    ) -> EncoderOutput:
        made: EncoderOutput
        if mask_BT is None:
            made = program(waveforms_BT, lengths_B)
        else:
            made = masking(self.encoder, waveforms_BT, lengths_B, mask_BT)
        return made


def encode_masked(encoder: Encoder, waveforms_BT: Tensor, lengths_B: Tensor | None, mask_BT: Tensor) -> EncoderOutput:
    """What an encoder makes of waveforms when everything after h_0 sees zeros in the masked frames (B, T).

    The h_0 of the output is the one before the mask.
    """
    features_BTD, frames_B = encoder.features(waveforms_BT, lengths_B)
    masked_BTD = features_BTD.masked_fill(mask_BT[..., None], 0)
    made = encoder.context(masked_BTD, None if lengths_B is None else frames_B)
    return made._replace(features_BTD=features_BTD)


def teacher_for_computing(teacher: Encoder, dtype: torch.dtype, compiles: bool = False) -> Encoder | OptimizedEncoder:
    """The frozen teacher as it runs fastest when autocast computes in `dtype`.

    In bfloat16 on a CPU that is `optimize`'s encoder, which is as near to the float32 teacher as autocast is. Elsewhere
    the weights of its linear maps are in `dtype`, as autocast would cast them at every step: it keeps what it casts
    only where there is a gradient. In float32 it is the teacher itself.

    Args:
        teacher: stays as it is.
        dtype: autocast's.
        compiles: it is going to be compiled.
    """
    if dtype == torch.float32:
        return teacher
    if dtype == torch.bfloat16 and not compiles and next(teacher.parameters()).device.type == "cpu":
        weights = {name: tensor.to(dtype) for name, tensor in teacher.state_dict().items()}
        return optimize(build(teacher.config, weights, "the teacher", dtype), "bf16")
    memo = {id(weight): weight for weight in teacher.parameters()}  # what is not cast is shared
    computing = copy.deepcopy(teacher, memo)
    for module in computing.modules():
        if isinstance(module, nn.Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    return computing.eval()


@contextmanager
def memory_reused() -> Iterator[None]:
    """In this block, have glibc keep the memory that a step frees for the next step; then return what is free.

    By default it returns blocks beyond 32 MB to the system at once, which has to clear them again at every step. The
    setting is one of the process, which may do other things after the block: its memory is theirs then.
    """
    reuse_memory()
    try:
        yield
    finally:
        return_memory()


def reuse_memory() -> None:
    """Have glibc keep freed memory until the process ends; elsewhere than on glibc this does nothing."""
    _set_malloc(KEPT)


def return_memory() -> None:
    """Have glibc return what is free, now and from now on."""
    _set_malloc(USUAL)
    if libc := _glibc():
        libc.malloc_trim(0)


def _set_malloc(values: dict[int, int]) -> None:
    if libc := _glibc():
        for name, value in values.items():
            libc.mallopt(name, value)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
