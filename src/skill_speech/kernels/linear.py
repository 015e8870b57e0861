"""Linear maps whose weights are laid out once for the processor's matrix instructions, in their own type or in 8 bits.

Shapes: … any leading axes, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..hardware import multiplies_few_rows_best_plainly
from .rounding import LEVELS, ZERO, input_scales, weight_scales

FEW_ROWS = 160
"""Up to as many rows, 3 s of frames, a plain product is faster than one with oneDNN's weights (float32), on processors
where it ever is.
"""


class PackedLinear(nn.Module):
    """y = x Wᵀ + b, or gelu of it, with W laid out once for the processor.

    The layout is oneDNN's blocks, with the activation in the product. In float32 some processors
    (`multiplies_few_rows_best_plainly`) have two layouts, each made when it is first needed: for products of few rows
    the weights of an input lie one after another, every row at the start of a cache line; such a product does the least
    for each call. Where torch does not offer oneDNN's blocks it is torch's own map.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.register_buffer("bias_O", bias_O.detach(), persistent=False)
        self.bias_O: Tensor
        self.packs = weight_OI.device.type == "cpu" and weight_OI.numel() > 0 and _packs(weight_OI.dtype)
        plain_first = weight_OI.dtype == torch.float32 and multiplies_few_rows_best_plainly()
        self.few_rows = FEW_ROWS if plain_first else 0
        weight_OI = weight_OI.detach()
        # Neither is a buffer: a packed weight can neither be cast nor moved.
        self.plain_OI: Tensor | None = _aligned(weight_OI) if self.few_rows else weight_OI.contiguous()
        self.packed_OI: Tensor | None = None
        self.was_plain = False  # whether the plain layout has ever been of use
        if self.packs and not self.few_rows:
            self._pack()

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        if self.packs and x_I.numel() > self.few_rows * x_I.shape[-1]:
            packed_OI = self.packed_OI if self.packed_OI is not None else self._pack()
            then = "gelu" if self.gelu else "none"
            return torch.ops.mkldnn._linear_pointwise(x_I, packed_OI, self.bias_O, then, [], "none")
        plain_OI = self.plain_OI if self.plain_OI is not None else self._unpack()
        self.was_plain = True
        y_O = F.linear(x_I, plain_OI, self.bias_O)
        return torch.ops.aten.gelu_(y_O) if self.gelu else y_O

    def _pack(self) -> Tensor:
        assert self.plain_OI is not None
        packed_OI = torch.ops.mkldnn._reorder_linear_weight(self.plain_OI.contiguous(), None)
        self.packed_OI = packed_OI
        if not self.was_plain:
            self.plain_OI = None
        return packed_OI

    def _unpack(self) -> Tensor:
        assert self.packed_OI is not None
        plain_OI = _aligned(self.packed_OI.to_dense())
        self.plain_OI = plain_OI
        return plain_OI


def _aligned(weight_OI: Tensor) -> Tensor:
    """The same numbers, those of an input one after another, and every row of them from a multiple of 64 bytes on."""
    outputs, inputs = weight_OI.shape
    rows_IO = weight_OI.new_zeros(inputs, -(-outputs // 16) * 16)
    rows_IO[:, :outputs] = weight_OI.T
    return rows_IO[:, :outputs].T


class Int8Linear(nn.Module):
    """y = x Wᵀ + b, or gelu of it, with 8-bit weights, a scale for every output, and 8-bit inputs, one for every frame.

    The numbers are those of `rounding`, with twice its resolution for weights. What comes out has the type of `x`.

    Args:
        weight_OI, bias_O: in any type.
        gelu: whether a gelu follows.
        zero: the code of inputs that are zero.

    Raises:
        InputError: this build of torch has no 8-bit matrix product.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, gelu: bool = False, zero: int = ZERO) -> None:
        super().__init__()
        self.gelu, self.zero = gelu, zero
        if weight_OI.device.type != "cpu" or not hasattr(torch.ops.onednn, "qlinear_prepack"):
            raise InputError("precision int8 needs a CPU and a torch that was built with oneDNN: use bf16 or float32")
        weight_OI = weight_OI.detach().float()
        scale_O1 = weight_scales(weight_OI, 2 * LEVELS)
        self.scales_O = scale_O1.flatten()
        self.zeros_O = torch.zeros(len(weight_OI), dtype=torch.int32)
        self.weight_OI = torch.ops.onednn.qlinear_prepack((weight_OI / scale_O1).round().to(torch.int8), None)
        self.bias_O = bias_O.detach().float()

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        # The product takes one scale for all frames: theirs are multiplied in afterwards.
        frames_NI = x_I.reshape(-1, x_I.shape[-1]).float()
        scale_N1 = input_scales(frames_NI, self.zero)
        # torch casts to signed bytes by vector instructions and to unsigned ones number by number; the sign bit turned
        # over, a signed byte is the unsigned one that is larger by 128.
        signed_NI = frames_NI.mul(1 / scale_N1).add_(self.zero - 128).round_().to(torch.int8)
        codes_NI = signed_NI.view(torch.uint8).bitwise_xor_(128)
        y_NO = torch.ops.onednn.qlinear_pointwise(
            codes_NI,
            1.0,
            self.zero,
            self.weight_OI,
            self.scales_O,
            self.zeros_O,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "none",
        )
        y_NO = torch.addcmul(self.bias_O, y_NO, scale_N1)
        return (F.gelu(y_NO) if self.gelu else y_NO).to(x_I.dtype).unflatten(0, x_I.shape[:-1])


def _packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of that type."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported()))
