"""What makes a training step faster without changing what it computes: compiling, types, memory."""

from __future__ import annotations

import copy
import ctypes
import logging
import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderOutput

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and numbers of glibc's malloc.h


class Compiled:
    """An encoder to be called; as a compiled program where that is wanted and works.

    Not a module: its encoder's weights belong to who made it.
    """

    def __init__(self, encoder: Encoder, compiles: bool) -> None:
        self.encoder = encoder
        # Crops have any length: one program for all of them.
        self._program: Any = torch.compile(encoder, dynamic=True) if compiles else encoder

    def __call__(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> EncoderOutput:
        """As `Encoder.forward`."""
        if self._program is self.encoder:
            return self.encoder(waveforms_BT, lengths_B)
        try:
            return self._program(waveforms_BT, lengths_B)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.ShortenTraceback) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            logger.warning("torch.compile failed (%s); going on without it", reason[0])
            self._program = self.encoder
            return self.encoder(waveforms_BT, lengths_B)


def teacher_for_computing(teacher: Encoder, dtype: torch.dtype) -> Encoder:
    """The frozen teacher with the weights of its linear maps in `dtype`, as autocast would cast them at every step.

    Autocast keeps what it casts only where there is a gradient. Norms stay in float32.
    """
    if dtype == torch.float32:
        return teacher
    memo = {id(weight): weight for weight in teacher.parameters()}  # what is not cast is shared
    computing = copy.deepcopy(teacher, memo)
    for module in computing.modules():
        if isinstance(module, nn.Linear):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    return computing.eval()


def reuse_memory() -> None:
    """Have glibc keep the memory that a step frees for the next step, until the process ends.

    By default it returns blocks beyond 32 MB to the system at once, which has to clear them anew at every step.
    Elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
