"""Linear maps of 8 or 4 bits in ONNX's operations: what takes the place of nn.Linear in an exported model.

Shapes: … any leading axes, I inputs, O outputs, G groups of 32 inputs.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from ..kernels.rounding import (
    GROUP,
    SMALLEST,
    Rounding,
    grouped,
    rounded_maps,
    weight_scales,
)

logger = logging.getLogger(__name__)


class Int8Map(nn.Module):
    """y = x Wᵀ + b with 8-bit weights, a scale for every output, and 8-bit inputs, one for every frame.

    Standard operations: QuantizeLinear, MatMulInteger. quantize_dynamic has one scale for a whole batch instead, and a
    frame of large values takes the resolution of all others.
    """

    def __init__(self, linear: nn.Linear, zero: int) -> None:
        super().__init__()
        scale_O1 = weight_scales(linear.weight.detach())
        self.zero, self.out_features = zero, linear.out_features
        self.register_buffer("codes_IO", (linear.weight.detach() / scale_O1).round().to(torch.int8).T.contiguous())
        self.register_buffer("scales_O", scale_O1.flatten())
        self.register_buffer("bias_O", linear.bias.detach())
        self.register_buffer("one", torch.ones(()))
        self.register_buffer("zero_code", torch.tensor(zero, dtype=torch.uint8))
        self.codes_IO: Tensor
        self.scales_O: Tensor
        self.bias_O: Tensor
        self.one: Tensor
        self.zero_code: Tensor

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O), when it is exported."""
        low_1, high_1 = x_I.amin(-1, keepdim=True), x_I.amax(-1, keepdim=True)
        scale_1 = torch.maximum(high_1 / (255 - self.zero), low_1 / -self.zero).clamp(min=SMALLEST)
        symbolic = torch.onnx.ops.symbolic
        codes_I = symbolic(
            "QuantizeLinear", (x_I / scale_1, self.one, self.zero_code), dtype=torch.uint8, shape=x_I.shape
        )
        shape_O = (*x_I.shape[:-1], self.out_features)
        sums_O = symbolic("MatMulInteger", (codes_I, self.codes_IO, self.zero_code), dtype=torch.int32, shape=shape_O)
        # One factor after the other: a product of both in parentheses is what onnxruntime 1.32 makes its
        # MatMulIntegerToFloat of, which takes the first frame's scale for all.
        return sums_O.float() * self.scales_O * scale_1 + self.bias_O


class Int4Map(nn.Module):
    """y = x Wᵀ + b with weights of 4 bits, a scale for every 32 inputs of an output; onnxruntime's MatMulNBits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes_OGN, scale_OG1 = grouped(linear.weight.detach())
        stored_OGN = (codes_OGN + 8).to(torch.uint8)  # 8 stands for zero; the first of two is in the lower bits
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("codes_OGB", stored_OGN[..., 0::2] + stored_OGN[..., 1::2] * 16)
        self.register_buffer("scales_OG", scale_OG1.squeeze(2))
        self.register_buffer("bias_O", linear.bias.detach())
        self.codes_OGB: Tensor
        self.scales_OG: Tensor
        self.bias_O: Tensor

    def forward(self, x_I: Tensor) -> Tensor:
        """(…, I) → (…, O), when it is exported."""
        product_O: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x_I, self.codes_OGB, self.scales_OG),
            {"K": self.in_features, "N": self.out_features, "bits": 4, "block_size": GROUP},
            dtype=torch.float32,
            shape=(*x_I.shape[:-1], self.out_features),
            version=1,
        )
        return product_O + self.bias_O


def quantize(encoder: Encoder, rounding: Rounding) -> None:
    """Put maps of 8 or 4 bits where the transformer's linear maps are, in place; it can only be exported then."""
    maps = list(rounded_maps(encoder))
    if not maps:
        logger.warning("warning: no linear map is left in the transformer, so nothing is rounded to %s", rounding)
    for parent, name, linear, zero in maps:
        setattr(parent, name, Int8Map(linear, zero) if rounding == "int8" else Int4Map(linear))
