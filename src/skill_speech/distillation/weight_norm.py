"""The positional convolution as it is trained: under weight normalization, as wav2vec 2.0 and its kin were pretrained.

Tap k of the kernel has the weight w_k = g_k v_k / ‖v_k‖ (arXiv 1602.07868). AdamW moves g and v, so an update turns w_k
by an angle of about rate · √N / ‖v_k‖, N being the numbers in a tap: how fast it is learned depends on ‖v‖, which
nobody can see in w. Checkpoints that keep g and v say what it is (`Checkpoint`); students are stored with plain weights
and, between stages, with ‖v‖ beside them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..encoder import Encoder


def attach_weight_norm(encoder: Encoder, direction_norm_K: Tensor | None = None) -> None:
    """Put the positional convolution under weight normalization, in place; nothing else is computed than before.

    Args:
        encoder: of any family; those that are trained without stay as they are.
        direction_norm_K: ‖v‖ of every tap; by default that of its weight.
    """
    if not encoder.config.positional_weight_norm:
        return
    conv = _conv(encoder)
    norm_11K = torch.norm_except_dim(conv.weight.detach(), 2, 2)
    # A tap that is all zeros has no direction: any will do, and without one the update would not be a number.
    filled_DCK = conv.weight.detach() + (norm_11K == 0)
    parametrizations.weight_norm(conv, dim=2)
    magnitude_11K, direction_DCK = _parts(conv)
    with torch.no_grad():
        wanted_11K = norm_11K if direction_norm_K is None else direction_norm_K.to(norm_11K).view_as(norm_11K)
        wanted_11K = torch.where(wanted_11K == 0, 1.0, wanted_11K)
        direction_DCK.copy_(filled_DCK * (wanted_11K / torch.norm_except_dim(filled_DCK, 2, 2)))
        magnitude_11K.copy_(norm_11K)


def remove_weight_norm(encoder: Encoder) -> Tensor | None:
    """Make the weight a plain one again, in place; returns ‖v‖ (K,), None where there is no weight normalization."""
    conv = _conv(encoder)
    if not parametrize.is_parametrized(conv):
        return None
    direction_norm_K = torch.norm_except_dim(_parts(conv)[1].detach(), 2, 2).flatten()
    parametrize.remove_parametrizations(conv, "weight")
    return direction_norm_K


def _conv(encoder: Encoder) -> nn.Conv1d:
    conv = encoder.positional_conv.convs[0]
    assert isinstance(conv, nn.Conv1d)
    return conv


def _parts(conv: nn.Conv1d) -> tuple[nn.Parameter, nn.Parameter]:
    """Magnitude (1, 1, K) and direction (D, C, K)."""
    parts: Any = conv.get_submodule("parametrizations.weight")
    return parts.original0, parts.original1
