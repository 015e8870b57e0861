"""Linear Centered Kernel Alignment between all pairs of layers, streaming in constant memory.

Shapes: L layers compared (h_0 included or not), B utterances, T frames of an utterance, D features of a layer, F frames
of any utterances, N frames of a minibatch, R frames of a block, S features of all layers side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from ..hardware import multiplies_bfloat16
from ..run import ranks

if TYPE_CHECKING:
    from ..data import AudioBatch
    from ..encoder import Encoder
    from .scales import LayerScales

Estimator = Literal["minibatch", "exact"]
GramPrecision = Literal["auto", "bf16", "float32"]

BUFFER_MINIBATCHES = 8
"""Minibatches that the shuffle buffer holds: 8 × 1024 frames are 164 s of speech."""

FEWEST_FRAMES = 8
"""HSIC_1 needs four frames; from minibatches of eight the remainder of a pass can always be dealt out in such."""

BLOCK = 256
"""Frames of a block of Gram matrices: those of 13 layers fit in a second-level cache."""

CONSTANT = 1e-6
"""A layer whose standard deviation is below this share of its size is constant: float32 tells nothing apart there."""


class MinibatchCKA:
    """CKA from unbiased HSIC_1 summed over minibatches of frames (Nguyen, Raghu & Kornblith, ICLR 2021, eq. 3).

    Its memory, a shuffle buffer of 8 minibatches and small blocks of Gram matrices, does not grow with the data. Of
    several ranks each takes in its own frames; minibatches are drawn on each of them, and their HSIC is summed over
    all.

    Why a buffer: HSIC_1 is unbiased for frames drawn independently. The frames of one utterance are not: they lie on a
    short smooth path, at the same places in time in every layer, and a minibatch of them looks alike in all layers
    whatever these do to speech at large. Minibatches are therefore drawn at random from the buffer.

    Args:
        batch_frames: frames N of a minibatch, at least 8.
        first_layer: number of the first layer, for messages: 1 when h_0 is left out.
        seed: of the shuffling.
        gram_dtype: see `unbiased_hsic`.

    Raises:
        InputError: batch_frames too small.
    """

    def __init__(
        self,
        batch_frames: int = 1024,
        *,
        first_layer: int = 0,
        seed: int = 0,
        gram_dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_frames < FEWEST_FRAMES:
            raise InputError(f"batch_frames is {batch_frames}; the minibatch estimator needs {FEWEST_FRAMES} or more")
        self.batch_frames = batch_frames
        self.first_layer = first_layer
        self.gram_dtype = gram_dtype
        self._generator = torch.Generator().manual_seed(seed)
        self._filled = 0

    def update(self, layers: Sequence[Tensor], lengths_B: Tensor | None = None) -> None:
        """Take in the layers of one batch.

        Args:
            layers: one tensor (B, T, D) per layer; D may differ between layers.
            lengths_B: valid frames per utterance; None when no frame is padding.

        Raises:
            InputError: a layer has a value that is not finite.
        """
        frames = _valid_frames(layers, lengths_B, self.first_layer)
        if not self._filled:
            capacity = BUFFER_MINIBATCHES * self.batch_frames
            self._buffers = [frames_FD.new_empty(capacity, frames_FD.shape[1]) for frames_FD in frames]
            # Rows of the buffers: those that hold a frame come first, the free ones behind them.
            self._rows_F = torch.arange(capacity)
            self._hsic_LL = torch.zeros(len(layers), len(layers), dtype=torch.float64, device=frames[0].device)
        taken = 0
        while taken < len(frames[0]):
            rows_N = self._rows_F[self._filled :][: len(frames[0]) - taken]
            for buffer_FD, frames_FD in zip(self._buffers, frames, strict=True):
                buffer_FD[rows_N.to(buffer_FD.device)] = frames_FD[taken : taken + len(rows_N)]
            self._filled += len(rows_N)
            taken += len(rows_N)
            if self._filled == len(self._rows_F):
                self._shuffle()
                self._filled -= self.batch_frames
                self._hsic_LL += self._measure(self._rows_F[self._filled :])

    def compute(self) -> Tensor:
        """CKA (L, L) of all that was taken in, float64 on the CPU, symmetric with a diagonal of 1.

        What is still in the buffer is dealt out in minibatches of nearly equal size, without being consumed.

        Raises:
            InputError: fewer than four frames on every rank, or a layer that is constant.
        """
        hsic_LL = None
        if self._filled >= 4:
            hsic_LL = self._hsic_LL.clone()
            self._shuffle()
            for rows_N in self._rows_F[: self._filled].tensor_split(-(-self._filled // self.batch_frames)):
                hsic_LL += self._measure(rows_N)
            hsic_LL = hsic_LL.cpu()
        parts = [part_LL for part_LL in ranks.gathered(hsic_LL) if part_LL is not None]
        if not parts:
            raise InputError(f"{self._filled} frames of speech are too few to compare layers; give more audio")
        return _normalize(torch.stack(parts).sum(0), self.first_layer)

    def _shuffle(self) -> None:
        order_F = torch.randperm(self._filled, generator=self._generator)
        self._rows_F = torch.cat([self._rows_F[order_F], self._rows_F[self._filled :]])

    def _measure(self, rows_N: Tensor) -> Tensor:
        """HSIC_1 of all pairs of layers, weighted by the frames it comes from (the last minibatches are smaller)."""
        rows_N = rows_N.to(self._hsic_LL.device)
        # One layer at a time is gathered and prepared, so that what is in work stays in the cache.
        return len(rows_N) * unbiased_hsic((buffer_FD[rows_N] for buffer_FD in self._buffers), self.gram_dtype)


class ExactCKA:
    """CKA of all frames at once, in feature space: ‖C_ij‖² / (‖C_ii‖ ‖C_jj‖) with C_ij the cross-covariance of layers.

    It equals the biased (plug-in) CKA of the N × N Gram matrices (Kornblith et al. 2019, eq. 3 to 5) at any number of
    frames. The cross-covariances are accumulated in float64; they take (sum of the layers' widths)² × 4 bytes: 0.4 GB
    for a Base model, 2.7 GB for a Large one, however much audio is used. Of several ranks each takes in its own frames;
    `compute` adds the sums up.

    Args:
        first_layer: number of the first layer, for messages: 1 when h_0 is left out.
    """

    def __init__(self, *, first_layer: int = 0) -> None:
        self.first_layer = first_layer
        self._frames = 0

    def update(self, layers: Sequence[Tensor], lengths_B: Tensor | None = None) -> None:
        """Take in the layers of one batch.

        Args:
            layers: one tensor (B, T, D) per layer; D may differ between layers.
            lengths_B: valid frames per utterance; None when no frame is padding.

        Raises:
            InputError: a layer has a value that is not finite.
        """
        frames_FS = torch.cat(_valid_frames(layers, lengths_B, self.first_layer), dim=1)
        if not len(frames_FS):
            return
        if not self._frames:
            self._widths = [layer.shape[-1] for layer in layers]
            starts = list(accumulate(self._widths, initial=0))
            # A covariance does not change when features are shifted: by the first batch's mean, so that the sums of
            # products stay small and subtracting the true mean's part at the end cancels nothing.
            self._shift_S = frames_FS.mean(0, dtype=torch.float64)
            self._sums_S = torch.zeros_like(self._shift_S)
            # Row i holds the products of layer i with the layers i … L-1; the others are their transposes.
            self._products = [
                self._shift_S.new_zeros(width, starts[-1] - start)
                for width, start in zip(self._widths, starts, strict=False)
            ]
        self._frames += len(frames_FS)
        for part_FS in frames_FS.split(1024):
            x_FS = part_FS.double() - self._shift_S
            self._sums_S += x_FS.sum(0)
            for product_DS in self._products:
                left = x_FS.shape[1] - product_DS.shape[1]
                product_DS.addmm_(x_FS[:, left : left + len(product_DS)].T, x_FS[:, left:])

    def compute(self) -> Tensor:
        """CKA (L, L) of all frames, float64 on the CPU, symmetric with a diagonal of 1.

        To be called once: it adds up what the ranks have taken in.

        Raises:
            InputError: fewer than two frames, or a layer that is constant.
        """
        if ranks.count() > 1:
            self._add_up()
        if self._frames < 2:
            raise InputError(f"{self._frames} frames of speech are too few to compare layers; give more audio")
        L = len(self._widths)
        mean_S = self._sums_S / self._frames
        means = (self._shift_S + mean_S).split(self._widths)
        hsic_LL = mean_S.new_zeros(L, L)
        for i, product_DS in enumerate(self._products):
            left = len(mean_S) - product_DS.shape[1]
            own_D, rest_S = mean_S[left : left + self._widths[i]], mean_S[left:]
            covariance_DS = product_DS / self._frames - torch.outer(own_D, rest_S)
            variance = covariance_DS.diagonal().sum()
            if variance <= CONSTANT**2 * (variance + means[i].square().sum()):
                continue
            for j, block_DD in enumerate(covariance_DS.split(self._widths[i:], dim=1), start=i):
                hsic_LL[i, j] = hsic_LL[j, i] = block_DD.square().sum()
        return _normalize(hsic_LL, self.first_layer)

    def _add_up(self) -> None:
        """Bring the sums of all ranks to the first rank's shift, and add them.

        With d = own shift - common shift, the sum of x - common is S + n·d, and the sum of products is
        P + d⊗S + S⊗d + n·d⊗d.
        """
        seen = ranks.gathered((self._frames, self._widths, self._shift_S.cpu()) if self._frames else None)
        some = [part for part in seen if part is not None]
        if not some:
            return
        _, widths, common_S = some[0]
        if not self._frames:
            self._widths, self._shift_S = widths, common_S
            self._sums_S = torch.zeros_like(common_S)
            self._products = [
                common_S.new_zeros(width, len(common_S) - start)
                for width, start in zip(widths, accumulate(widths, initial=0), strict=False)
            ]
        common_S = common_S.to(self._shift_S.device)
        d_S = self._shift_S - common_S
        for product_DS in self._products:
            left = len(d_S) - product_DS.shape[1]
            own = slice(left, left + len(product_DS))
            product_DS += torch.outer(d_S[own], self._sums_S[left:] + self._frames * d_S[left:])
            product_DS += torch.outer(self._sums_S[own], d_S[left:])
            ranks.sum_in_place(product_DS)
        self._sums_S += self._frames * d_S
        ranks.sum_in_place(self._sums_S)
        self._shift_S, self._frames = common_S, sum(frames for frames, _, _ in some)


def unbiased_hsic(layers: Iterable[Tensor], gram_dtype: torch.dtype = torch.float64) -> Tensor:
    """HSIC_1 of every pair of layers with linear kernels (Song et al. 2012, eq. 5), in float64.

    With K = X Xᵀ and M = Y Yᵀ, their diagonals set to zero, and 1 the vector of ones:
    [tr(KM) + 1ᵀK1 · 1ᵀM1 / ((N-1)(N-2)) - 2/(N-2) · 1ᵀKM1] / (N(N-3)).

    Args:
        layers: features X (N, D) of the same N ≥ 4 frames; D may differ between layers.
        gram_dtype: type of the Gram matrices. In bfloat16 CKA moves by about 1e-5: the errors of a million entries
            average out.

    Returns:
        (L, L), an unbiased estimate of HSIC for frames drawn independently; it can be slightly negative. A layer that
        is constant has zeros.
    """
    scales, norms, units = [], [], []
    work = torch.float32 if gram_dtype == torch.bfloat16 else torch.float64
    for x_ND in layers:
        # HSIC_1 does not change when features are shifted. Without their mean, which can be far larger than what tells
        # frames apart, and at unit scale, which is undone below, few digits are enough for the Gram matrix. And the
        # rows of X Xᵀ sum to zero, so that the sums without its diagonal are known before it is.
        x_ND = x_ND.to(work)
        mean_D = x_ND.mean(0)
        centred_ND = x_ND - mean_D
        norms_N = torch.linalg.vector_norm(centred_ND, dim=1, dtype=work).double().square()
        variance = norms_N.mean() / x_ND.shape[1]
        size = variance + mean_D.double().square().mean()
        scale = variance.sqrt() if variance > CONSTANT**2 * size else torch.zeros_like(variance)
        inverse = 1 / scale if scale > 0 else scale
        scales.append(scale)
        norms.append(norms_N * inverse**2)
        units.append((centred_ND * inverse.to(work)).to(gram_dtype))
    N = len(units[0])
    rows_LN = -torch.stack(norms)
    totals_L = rows_LN.sum(1)
    corrections_LL = torch.outer(totals_L, totals_L) / ((N - 1) * (N - 2)) - rows_LN @ rows_LN.T * (2 / (N - 2))
    variances_L = torch.stack(scales).square()
    return (_traces(units) + corrections_LL) / (N * (N - 3)) * torch.outer(variances_L, variances_L)


def _traces(layers: Sequence[Tensor]) -> Tensor:
    """tr(KM) of every pair of Gram matrices without their diagonals (L, L), float64.

    As K and M are symmetric, the trace is the sum of the products of all entries: one matrix product of the flattened
    Gram matrices for all pairs of layers. Only the blocks on and above the diagonal are computed, one at a time of all
    layers, so that they never leave the cache.
    """
    N, device = len(layers[0]), layers[0].device
    # Half precision is multiplied with, not summed in.
    sums = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
    traces_LL = torch.zeros(len(layers), len(layers), dtype=torch.float64, device=device)
    for top in range(0, N, BLOCK):
        for left in range(top, N, BLOCK):
            blocks = [x_ND[top : top + BLOCK] @ x_ND[left : left + BLOCK].T for x_ND in layers]
            if top == left:
                for block_RR in blocks:
                    block_RR.fill_diagonal_(0)
            flat_LF = torch.stack(blocks).flatten(1).to(sums)
            traces_LL += (1 if top == left else 2) * (flat_LF @ flat_LF.T)
    return traces_LL


def estimate_cka(
    encoder: Encoder,
    batches: Iterable[AudioBatch],
    *,
    estimator: Estimator = "minibatch",
    batch_frames: int = 1024,
    include_features: bool = True,
    seed: int = 0,
    precision: GramPrecision = "auto",
    scales: LayerScales | None = None,
    progress: Callable[[], object] | None = None,
) -> Tensor:
    """CKA between all layers h_0 … h_L of an encoder over some speech, padding excluded.

    Args:
        encoder: it is run as it is used, without dropout, on the device where it lies.
        batches: the calibration audio; of several ranks, this one's share of it.
        estimator: "minibatch" is unbiased and small, "exact" the plug-in estimate in feature space.
        batch_frames: frames per minibatch of the minibatch estimator.
        include_features: h_0 takes part.
        seed: of the minibatch estimator's shuffling.
        precision: of the minibatch estimator's Gram matrices; "auto" is bf16 where the device has instructions for it.
        scales: takes in h_0 … h_L in the same pass.
        progress: called after every batch.

    Returns:
        (L+1, L+1), or (L, L) without h_0, float64 on the CPU; over the audio of all ranks, and the same on each.

    Raises:
        InputError: an unknown estimator, no audio, or a layer that is constant or not finite.
    """
    first_layer = 0 if include_features else 1
    device = next(encoder.parameters()).device
    half = multiplies_bfloat16(device) if precision == "auto" else precision == "bf16"
    cka: MinibatchCKA | ExactCKA
    if estimator == "minibatch":
        gram_dtype = torch.bfloat16 if half else torch.float32
        cka = MinibatchCKA(batch_frames, first_layer=first_layer, seed=seed, gram_dtype=gram_dtype)
    elif estimator == "exact":
        cka = ExactCKA(first_layer=first_layer)
    else:
        raise InputError(f"unknown CKA estimator {estimator!r}; known: {', '.join(get_args(Estimator))}")
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                out = encoder(batch.waveforms_BT.to(device), batch.lengths_B.to(device))
                cka.update(out.layers[first_layer:], out.lengths_B)
                if scales is not None:
                    scales.update(out.layers, out.lengths_B)
                if progress is not None:
                    progress()
    finally:
        encoder.train(was_training)
    return cka.compute()


def _valid_frames(layers: Sequence[Tensor], lengths_B: Tensor | None, first_layer: int) -> list[Tensor]:
    """The frames of every layer that are not padding (F, D), float32."""
    if lengths_B is None:
        frames = [layer_BTD.flatten(0, 1).float() for layer_BTD in layers]
    else:
        steps_T = torch.arange(layers[0].shape[1], device=layers[0].device)
        valid_BT = steps_T < lengths_B.to(steps_T.device)[:, None]
        frames = [layer_BTD[valid_BT].float() for layer_BTD in layers]
    # A sum is finite if all its terms are, and cheaper than looking at each of them.
    if not torch.stack([frames_FD.sum() for frames_FD in frames]).isfinite().all():
        bad = next((number for number, frames_FD in enumerate(frames) if not frames_FD.isfinite().all()), None)
        if bad is not None:
            raise InputError(
                f"layer h_{first_layer + bad} has values that are not finite (NaN or infinite): "
                "check the checkpoint and the audio"
            )
    return frames


def _normalize(hsic_LL: Tensor, first_layer: int) -> Tensor:
    """From HSIC to CKA."""
    hsic_LL = hsic_LL.cpu()
    own_L = hsic_LL.diagonal()
    if not (own_L > 0).all():
        constant = ", ".join(f"h_{first_layer + int(number)}" for number in (own_L <= 0).nonzero())
        raise InputError(
            f"layer {constant} is constant over all frames, so its similarity is undefined: "
            "check the checkpoint and the audio"
        )
    cka_LL = hsic_LL / torch.outer(own_L, own_L).sqrt()
    cka_LL = (cka_LL + cka_LL.T) / 2
    return cka_LL.fill_diagonal_(1)
