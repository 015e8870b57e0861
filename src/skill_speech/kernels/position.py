"""The positional convolution: by way of the frequency domain in float32, as matrix products in bfloat16.

Shapes: B utterances, T frames, D hidden size, G groups, I = D / G inputs and O outputs of a group, K taps; S frames of
a block, J blocks of the output, R = B · J, F = S + 1 frequencies of 2 S points, P = 2 halves of the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import convolve, multiply_windows

SMALLEST_KERNEL = 64
"""Below it a convolution is as cheap as its Fourier transforms."""

PART = 8
"""Blocks of output that are computed together; what lies between two steps takes 20 times the memory of its input."""


class SpectralConv(nn.Module):
    """A grouped convolution with a wide kernel, same result, a tenth of the multiplications.

    WavLM Base's (128 taps, 16 groups of 48 channels) takes 4.7 million multiply-accumulates a frame, as much as its
    whole pruned transformer layer; as a product of spectra it takes 0.3 million. Uniformly partitioned overlap-save
    (Wefers 2015, ch. 5.3): the kernel is cut in two halves of S taps, so that blocks are short. Example with S = 2,
    kernel w0 w1 | w2 w3 and input blocks of 4 that start every S frames: output frames 0 1 are the first two of

        correlate(x0 x1 x2 x3, w0 w1) + correlate(x2 x3 x4 x5, w2 w3)

    Args:
        conv: a stride of 1 and a padding of half the kernel.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        kernel = conv.kernel_size[0]
        self.kernel, self.groups, self.block = kernel, conv.groups, (kernel + 1) // 2
        weight_GOIK = conv.weight.detach().unflatten(0, (conv.groups, -1))
        # One matrix (I, O) for each half, frequency and group. Group by group, for what they weigh on the way.
        self.spectrum = torch.empty(
            2,
            (self.block + 1) * self.groups,
            weight_GOIK.shape[2],
            weight_GOIK.shape[1],
            dtype=torch.complex64,
            device=weight_GOIK.device,
        )
        by_group_PFGIO = self.spectrum.unflatten(1, (self.block + 1, self.groups))
        for group, weight_OIK in enumerate(weight_GOIK):
            weight_OIK = F.pad(weight_OIK.detach().float(), (0, 2 * self.block - kernel))
            spectrum_OIPF = torch.fft.rfft(weight_OIK.unflatten(-1, (2, self.block)), 2 * self.block).conj()
            by_group_PFGIO[:, :, group] = spectrum_OIPF.permute(2, 3, 1, 0)
        assert conv.bias is not None
        self.bias_D = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.whole: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D), the type of `x`."""
        T, S, left = x_BTD.shape[1], self.block, self.kernel // 2
        if T <= S and left == S:
            return self._convolve_short(x_BTD)
        blocks = -(-T // S)
        padded_BDT = F.pad(x_BTD.transpose(1, 2).float(), (left, (blocks + 2) * S - T - left))
        y_BTD = torch.empty_like(x_BTD)
        for start in range(0, blocks, PART):
            # The blocks of a part read one more, and that one block's samples are two blocks long.
            stop = min(start + PART, blocks)
            part_BTD = self._convolve(padded_BDT[..., start * S : (stop + 2) * S])
            y_BTD[:, start * S : stop * S] = part_BTD[:, : T - start * S]
        return y_BTD

    def _convolve(self, padded_BDT: Tensor) -> Tensor:
        """J + 2 blocks of samples (B, D, (J + 2) · S) → J blocks of outputs (B, J · S, D)."""
        B, D, _ = padded_BDT.shape
        S, G = self.block, self.groups
        J = padded_BDT.shape[-1] // S - 2
        spectra_BDJF = torch.fft.rfft(padded_BDT.unfold(-1, 2 * S, S))
        spectra_FGBJI = spectra_BDJF.unflatten(1, (G, D // G)).permute(4, 1, 0, 3, 2).contiguous()
        # Every output block reads two neighboring input blocks, one for each half of the kernel.
        first_FRI, second_FRI = (spectra_FGBJI[:, :, :, half : half + J].flatten(2, 3).flatten(0, 1) for half in (0, 1))
        product_FRO = torch.baddbmm(torch.bmm(first_FRI, self.spectrum[0]), second_FRI, self.spectrum[1])
        product_BGOJF = product_FRO.view(S + 1, G, B, J, D // G).permute(2, 1, 4, 3, 0)
        y_BDT = torch.fft.irfft(product_BGOJF, 2 * S)[..., :S].flatten(3).flatten(1, 2)
        return (y_BDT + self.bias_D[:, None]).transpose(1, 2)

    def _convolve_short(self, x_BTD: Tensor) -> Tensor:
        """At most S frames: one block, of which both halves of the kernel read the same frames.

        S frames earlier or later, a spectrum of 2 S points is the same with every other sign changed: the sum of both
        halves with those signs is one kernel, half as much to read. Made for the first short utterance.
        """
        B, T, D = x_BTD.shape
        S, G = self.block, self.groups
        if self.whole is None:
            sign_F1 = 1 - 2 * (torch.arange(S + 1, device=x_BTD.device) % 2)
            sign_N11 = sign_F1[:, None].expand(S + 1, G).reshape(-1, 1, 1)
            self.whole = torch.addcmul(self.spectrum[1], self.spectrum[0], sign_N11.to(self.spectrum.dtype))
        spectra_BFD = torch.fft.rfft(x_BTD.float(), 2 * S, dim=1)
        spectra_NBI = spectra_BFD.reshape(B, (S + 1) * G, D // G).transpose(0, 1)
        product_BFD = torch.bmm(spectra_NBI, self.whole).transpose(0, 1).reshape(B, S + 1, D)
        y_BTD = torch.fft.irfft(product_BFD, 2 * S, dim=1)[:, :T]
        return (y_BTD + self.bias_D).to(x_BTD.dtype)


class GroupedProduct(nn.Module):
    """A grouped convolution with a stride of 1 as one matrix product for every utterance and group.

    In bfloat16 it is as fast as spectra, which have to stay in float32 and take four times the memory of the weights.

    Args:
        conv: a stride of 1 and a padding of half the kernel.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.kernel, self.groups = conv.kernel_size[0], conv.groups
        weight_GOIK = conv.weight.detach().unflatten(0, (self.groups, -1))
        # The taps of a window lie one after another, each with the channels of its group.
        self.weight_GXO = nn.Parameter(weight_GOIK.permute(0, 3, 2, 1).flatten(1, 2).contiguous(), requires_grad=False)
        self.bias_GO = nn.Parameter(conv.bias.detach().unflatten(0, (self.groups, -1)), requires_grad=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        T, inputs = x_BTD.shape[1], x_BTD.shape[2] // self.groups
        # Taps that reach beyond both ends of a short utterance from everywhere read nothing but zeros.
        first = max(0, self.kernel // 2 - (T - 1))
        last = min(self.kernel, self.kernel // 2 + T)
        left, right = self.kernel // 2 - first, last - 1 - self.kernel // 2
        padded_BTGI = F.pad(x_BTD, (0, 0, left, right)).unflatten(2, (self.groups, -1))
        x_NTI = padded_BTGI.transpose(1, 2).contiguous().flatten(0, 1)
        y_NTO = multiply_windows(x_NTI, self.weight_GXO[:, first * inputs : last * inputs], self.bias_GO, 1)
        return y_NTO.unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(2)


def convolve_or_run(x_BTD: Tensor, conv: nn.Module) -> Tensor:
    """`convolve`, and what stands in the place of a convolution itself: it makes as many frames as it takes."""
    return convolve(x_BTD, conv) if isinstance(conv, nn.Conv1d) else conv(x_BTD)
