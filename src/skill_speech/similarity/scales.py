"""How large each layer's states are: what averaging layers of different size has to divide by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..run import ranks


class LayerScales:
    """Spread of each layer: the root of the mean variance of its features over frames, in one pass and float64.

    In a pre-norm model every layer adds to the residual stream, which grows on its way: a plain average of layers is
    then almost the last of them. Divided by their spread, all have the same say. Example with spreads 1, 3 and 8: the
    last layer makes up 67 % of the plain average, and a third of the scaled one.
    """

    def __init__(self) -> None:
        self._frames = 0

    def update(self, layers: Sequence[Tensor], lengths_B: Tensor | None = None) -> None:
        """Take in the layers of one batch, each (B, T, D); `lengths_B` are the valid frames, None for all."""
        for number, layer_BTD in enumerate(layers):
            frames_FD = layer_BTD.flatten(0, 1)
            if lengths_B is not None:
                steps_T = torch.arange(layer_BTD.shape[1], device=layer_BTD.device)
                frames_FD = layer_BTD[steps_T < lengths_B.to(steps_T.device)[:, None]]
            frames_FD = frames_FD.double()
            if not self._frames and not number:
                self._shifts = [frames.new_zeros(0) for frames in layers]
                self._sums, self._squares = list(self._shifts), list(self._shifts)
            if not self._frames:
                # By the first batch's mean, so that the squares stay small and nothing cancels at the end.
                self._shifts[number] = frames_FD.mean(0)
                self._sums[number] = torch.zeros_like(self._shifts[number])
                self._squares[number] = torch.zeros_like(self._shifts[number])
            centered_FD = frames_FD - self._shifts[number]
            self._sums[number] = self._sums[number] + centered_FD.sum(0)
            self._squares[number] = self._squares[number] + centered_FD.square().sum(0)
        self._frames += len(frames_FD)

    def compute(self) -> Tensor:
        """The spread of each layer (L,) over the frames of all ranks, float64 on the CPU."""
        moments = None
        if self._frames:
            moments = [
                (shift_D.cpu(), sums_D.cpu(), squares_D.cpu())
                for shift_D, sums_D, squares_D in zip(self._shifts, self._sums, self._squares, strict=True)
            ]
        parts = [(frames, layers) for frames, layers in ranks.gathered((self._frames, moments)) if layers is not None]
        total = sum(frames for frames, _ in parts)
        variances = []
        for number in range(len(parts[0][1])):
            common_D = parts[0][1][number][0]
            sums_D, squares_D = torch.zeros_like(common_D), torch.zeros_like(common_D)
            for frames, layers in parts:
                # From a rank's own shift to the first one's.
                shift_D, own_sums_D, own_squares_D = layers[number]
                d_D = shift_D - common_D
                sums_D += own_sums_D + frames * d_D
                squares_D += own_squares_D + 2 * d_D * own_sums_D + frames * d_D.square()
            variances.append((squares_D / total - (sums_D / total).square()).mean())
        return torch.stack(variances).clamp(min=0).sqrt()
