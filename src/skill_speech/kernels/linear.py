"""Linear maps whose weights are laid out once for the processor's matrix instructions, in their own type or in 8 bits.

Shapes: … any leading axes, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class PackedLinear(nn.Module):
    """y = x Wᵀ + b, or gelu of it, with W in oneDNN's blocked layout; where torch does not offer it, torch's own map.

    A plain linear map brings W into that layout on every call, which for one utterance costs a tenth of the product.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        self.register_buffer("bias_O", bias_O.detach(), persistent=False)
        self.packed = weight_OI.device.type == "cpu" and weight_OI.numel() > 0 and _packs(weight_OI.dtype)
        weight_OI = weight_OI.detach().contiguous()
        if self.packed:
            weight_OI = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
        self.weight_OI = weight_OI  # not a buffer: a packed weight can neither be cast nor moved
        self.bias_O: Tensor

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        if not self.packed:
            y_O = F.linear(x_I, self.weight_OI, self.bias_O)
            return F.gelu(y_O) if self.gelu else y_O
        then = "gelu" if self.gelu else "none"
        return torch.ops.mkldnn._linear_pointwise(x_I, self.weight_OI, self.bias_O, then, [], "none")


class Int8Linear(nn.Module):
    """y = x Wᵀ + b, or gelu of it, with 8-bit weights, a scale for every output, and 8-bit inputs, scaled as they come.

    The range of a whole batch gives the inputs' scale and zero point. What comes out has the type of `x`.

    Raises:
        InputError: this build of torch has no 8-bit matrix product.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, gelu: bool = False) -> None:
        super().__init__()
        self.gelu = gelu
        if weight_OI.device.type != "cpu" or not hasattr(torch.ops.onednn, "qlinear_prepack"):
            raise InputError("precision int8 needs a CPU and a torch that was built with oneDNN: use bf16 or float32")
        weight_OI = weight_OI.detach().float()
        self.scales_O = (weight_OI.abs().amax(1) / 127).clamp(min=1e-12)
        codes_OI = (weight_OI / self.scales_O[:, None]).round().to(torch.int8)
        self.zeros_O = torch.zeros(len(codes_OI), dtype=torch.int32)
        self.weight_OI = torch.ops.onednn.qlinear_prepack(codes_OI, None)
        self.bias_O = bias_O.detach().float()

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O)."""
        low, high = (float(value) for value in x_I.aminmax())
        low, high = min(low, 0.0), max(high, 0.0)
        scale = (high - low) / 255 or 1.0
        zero = round(-low / scale)
        codes_I = x_I.float().mul(1 / scale).add_(zero).round_().clamp_(0, 255).to(torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            codes_I,
            scale,
            zero,
            self.weight_OI,
            self.scales_O,
            self.zeros_O,
            self.bias_O,
            1.0,
            0,
            x_I.dtype,
            "gelu" if self.gelu else "none",
            [],
            "none",
        )


def _packs(dtype: torch.dtype) -> bool:
    """Whether this build of torch packs weights of that type."""
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(ops, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported()))
