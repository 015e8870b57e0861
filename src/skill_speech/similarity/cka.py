"""Linear Centered Kernel Alignment between all pairs of layers, streaming in constant memory.

Raw, of features as they are, and of frames that are normalized first: in a trained encoder some frames have features
that are far larger than all others, and raw CKA is then hardly more than a comparison of these.

Shapes: L layers compared (h_0 included or not), B utterances, T frames of an utterance, D features of a layer, F frames
of any utterances, N frames of a minibatch, R frames of a block, S features of all layers side by side, P parts of the
audio, H subsets of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from typing import TYPE_CHECKING, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..hardware import multiplies_bfloat16
from ..run import ranks

if TYPE_CHECKING:
    from ..data import AudioBatch
    from ..encoder import Encoder
    from .scales import LayerScales

Estimator = Literal["minibatch", "exact"]
View = Literal["raw", "normalized"]
GramPrecision = Literal["auto", "bf16", "float32"]

BUFFER_MINIBATCHES = 8
"""Minibatches that the shuffle buffer holds: 8 × 1024 frames are 164 s of speech."""

FEWEST_FRAMES = 8
"""HSIC_1 needs four frames; from minibatches of eight the remainder of a pass can always be dealt out in such."""

BLOCK = 256
"""Frames of a block of Gram matrices: those of 13 layers fit in a second-level cache."""

PARTS = 8
"""Utterances are dealt into so many parts, for resampling."""

HALVES = 20
"""Halves of the audio, four parts each, that the similarity is measured on as well."""

CONSTANT = 1e-6
"""A layer whose standard deviation is below this share of its size is constant: float32 tells nothing apart there."""


@dataclass(frozen=True)
class Similarity:
    """How similar layers are, float64 on the CPU.

    Attributes:
        raw_LL: CKA of the features as they are.
        normalized_LL: CKA of frames of zero mean and unit variance over their features; None if a layer's frames are
            then all the same.
        raw_halves_HLL, normalized_halves_HLL: the same of halves of the utterances, fewer where a half has too little;
            empty if not asked for. Without replacement, half of the data scatters around the whole as a whole one
            around the truth.
    """

    raw_LL: Tensor
    normalized_LL: Tensor | None
    raw_halves_HLL: Tensor
    normalized_halves_HLL: Tensor

    def of(self, view: View) -> tuple[Tensor, Tensor]:
        """CKA (L, L) and that of the halves (H, L, L).

        Raises:
            InputError: normalized frames are all the same in a layer.
        """
        if view == "raw":
            return self.raw_LL, self.raw_halves_HLL
        if self.normalized_LL is None:
            raise InputError("a layer is constant once its frames are normalized: compare the features as they are")
        return self.normalized_LL, self.normalized_halves_HLL


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
        views: what is measured: features as they are, or normalized.
        halves: so many halves of the utterances are measured as well; at most 70.
        alone: there are no other ranks that take part.

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
        views: Sequence[View] = ("raw",),
        halves: int = 0,
        alone: bool = False,
    ) -> None:
        if batch_frames < FEWEST_FRAMES:
            raise InputError(f"batch_frames is {batch_frames}; the minibatch estimator needs {FEWEST_FRAMES} or more")
        self.batch_frames = batch_frames
        self.first_layer = first_layer
        self.gram_dtype = gram_dtype
        self.views, self.alone = tuple(views), alone
        self._members_HP = _members(halves)
        self._generator = torch.Generator().manual_seed(seed)
        self._filled = self._utterances = 0

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
            # Rows of the buffers: those that hold a frame come first, followed by the free ones.
            self._rows_F = torch.arange(capacity)
            self._part_F = torch.zeros(capacity, dtype=torch.long)
            shape = (len(self.views), len(self._members_HP), len(layers), len(layers))
            self._hsic_VHLL = torch.zeros(shape, dtype=torch.float64, device=frames[0].device)
        B, T = layers[0].shape[:2]
        each_B = torch.full((B,), T) if lengths_B is None else lengths_B.cpu()
        numbers_B = (self._utterances + torch.arange(B)) * ranks.count() + ranks.rank()
        part_F = (numbers_B % PARTS).repeat_interleave(each_B)
        self._utterances += B
        taken = 0
        while taken < len(frames[0]):
            rows_N = self._rows_F[self._filled :][: len(frames[0]) - taken]
            for buffer_FD, frames_FD in zip(self._buffers, frames, strict=True):
                buffer_FD[rows_N.to(buffer_FD.device)] = frames_FD[taken : taken + len(rows_N)]
            self._part_F[rows_N] = part_F[taken : taken + len(rows_N)]
            self._filled += len(rows_N)
            taken += len(rows_N)
            if self._filled == len(self._rows_F):
                self._shuffle()
                self._filled -= self.batch_frames
                self._hsic_VHLL += self._measure(self._rows_F[self._filled :])

    def compute(self) -> Tensor:
        """CKA (L, L) of all that was taken in, of the first view, float64 on the CPU, symmetric with a diagonal of 1.

        Raises:
            InputError: fewer than four frames on every rank, or a layer that is constant.
        """
        return _normalize(self._sums()[0, 0], self.first_layer)

    def similarity(self) -> Similarity:
        """CKA of all that was taken in, of every view and half.

        Raises:
            InputError: fewer than four frames on every rank, or a layer that is constant.
        """
        hsic_VHLL = self._sums()
        if sum(ranks.gathered(self._utterances)) < PARTS:
            hsic_VHLL = hsic_VHLL[:, :1]
        found: dict[str, tuple[Tensor | None, Tensor]] = {}
        for view, (whole_LL, *halves) in zip(self.views, hsic_VHLL, strict=True):
            made = [_normalize(half_LL) for half_LL in halves if (half_LL.diagonal() > 0).all()]
            constant = view != "raw" and not (whole_LL.diagonal() > 0).all()
            cka_LL = None if constant else _normalize(whole_LL, self.first_layer)
            found[view] = (cka_LL, torch.stack(made) if made else whole_LL.new_zeros(0, *whole_LL.shape))
        raw_LL, raw_halves_HLL = found["raw"]
        assert raw_LL is not None
        return Similarity(raw_LL, found["normalized"][0], raw_halves_HLL, found["normalized"][1])

    def _sums(self) -> Tensor:
        """HSIC of all ranks (V, H, L, L), the first of H of all frames.

        What is still in the buffer is dealt out in minibatches of nearly equal size, without being consumed.

        Raises:
            InputError: fewer than four frames on every rank.
        """
        hsic_VHLL = None
        if self._filled >= 4:
            hsic_VHLL = self._hsic_VHLL.clone()
            self._shuffle()
            for rows_N in self._rows_F[: self._filled].tensor_split(-(-self._filled // self.batch_frames)):
                hsic_VHLL += self._measure(rows_N)
            hsic_VHLL = hsic_VHLL.cpu()
        gathered = [hsic_VHLL] if self.alone else ranks.gathered(hsic_VHLL)
        of_ranks = [sums_VHLL for sums_VHLL in gathered if sums_VHLL is not None]
        if not of_ranks:
            raise InputError(f"{self._filled} frames of speech are too few to compare layers; give more audio")
        return torch.stack(of_ranks).sum(0)

    def _shuffle(self) -> None:
        order_F = torch.randperm(self._filled, generator=self._generator)
        self._rows_F = torch.cat([self._rows_F[order_F], self._rows_F[self._filled :]])

    def _measure(self, rows_N: Tensor) -> Tensor:
        """HSIC_1 of all views, halves and pairs of layers (V, H, L, L), weighted by the frames it comes from."""
        part_N = None
        if len(self._members_HP) > 1:
            part_N, order_N = self._part_F[rows_N].sort(stable=True)
            rows_N = rows_N[order_N]
        rows_N = rows_N.to(self._hsic_VHLL.device)
        made = []
        for view in self.views:
            # One layer at a time is gathered and prepared, so that what is in work stays in the cache.
            layers = (buffer_FD[rows_N] for buffer_FD in self._buffers)
            if view == "normalized":
                layers = (normalized(x_ND) for x_ND in layers)
            made.append(_hsic_of_subsets(layers, self.gram_dtype, part_N, self._members_HP))
        return torch.stack(made)


def normalized(x_ND: Tensor) -> Tensor:
    """Frames of zero mean and unit variance over their features."""
    return F.layer_norm(x_ND, x_ND.shape[-1:], eps=1e-12)


def _members(halves: int) -> Tensor:
    """Which parts belong to a subset (1 + halves, P), 0 or 1: first all of them, then so many different halves."""
    ways = random.Random(0).sample(list(combinations(range(PARTS), PARTS // 2)), halves)
    members_HP = torch.zeros(1 + halves, PARTS, dtype=torch.float64)
    members_HP[0] = 1
    for row, parts in enumerate(ways, start=1):
        members_HP[row, list(parts)] = 1
    return members_HP


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


class _ExactOfBoth:
    """Raw and normalized, at twice the memory."""

    def __init__(self, first_layer: int) -> None:
        self.raw, self.normalized = ExactCKA(first_layer=first_layer), ExactCKA(first_layer=first_layer)

    def update(self, layers: Sequence[Tensor], lengths_B: Tensor | None = None) -> None:
        """Take in the layers of one batch."""
        self.raw.update(layers, lengths_B)
        self.normalized.update([normalized(layer_BTD.float()) for layer_BTD in layers], lengths_B)

    def similarity(self) -> Similarity:
        """Of all frames.

        Raises:
            InputError: fewer than two frames, or a layer that is constant.
        """
        raw_LL = self.raw.compute()
        none_HLL = raw_LL.new_zeros(0, *raw_LL.shape)
        try:
            normalized_LL = self.normalized.compute()
        except InputError:
            return Similarity(raw_LL, None, none_HLL, none_HLL)
        return Similarity(raw_LL, normalized_LL, none_HLL, none_HLL)


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
    layers = list(layers)
    return _hsic_of_subsets(layers, gram_dtype, None, _members(0))[0] / len(layers[0])


def _hsic_of_subsets(
    layers: Iterable[Tensor], gram_dtype: torch.dtype, part_N: Tensor | None, members_HP: Tensor
) -> Tensor:
    """HSIC_1 of subsets of the frames (H, L, L), each times the number of its frames; zeros of fewer than four.

    The Gram matrices are computed once: a subset of parts is a sum over the blocks of its parts.

    Args:
        layers: as for `unbiased_hsic`.
        gram_dtype: as there.
        part_N: the part of every frame, ascending; None if all are of the first.
        members_HP: the parts of every subset, 0 or 1.
    """
    scales, units, row_sums = [], [], []
    work = torch.float32 if gram_dtype == torch.bfloat16 else torch.float64
    weights_HN = None
    for x_ND in layers:
        # HSIC_1 does not change when features are shifted. Without their mean, which can be far larger than what tells
        # frames apart, and at unit scale, which is undone below, few digits are enough for the Gram matrix. And the
        # row sums of X Xᵀ over a subset are products with the subset's sum, known before the matrix is.
        x_ND = x_ND.to(work)
        mean_D = x_ND.mean(0)
        centered_ND = x_ND - mean_D
        norms_N = torch.linalg.vector_norm(centered_ND, dim=1, dtype=work).double().square()
        variance = norms_N.mean() / x_ND.shape[1]
        size = variance + mean_D.double().square().mean()
        scale = variance.sqrt() if variance > CONSTANT**2 * size else torch.zeros_like(variance)
        inverse = 1 / scale if scale > 0 else scale
        unit_ND = centered_ND * inverse.to(work)
        if weights_HN is None:
            members_HP = members_HP.to(x_ND.device)
            weights_HN = members_HP[:, torch.zeros(len(x_ND), dtype=torch.long) if part_N is None else part_N]
        sums_HD = weights_HN.to(work) @ unit_ND
        sums_HD[0] = 0  # of all frames, exactly
        row_sums.append((unit_ND @ sums_HD.T).T.double() - norms_N * inverse**2)
        scales.append(scale)
        units.append(unit_ND.to(gram_dtype))
    assert weights_HN is not None
    rows_HLN = torch.stack(row_sums, 1) * weights_HN[:, None]
    totals_HL = rows_HLN.sum(2)
    frames_H11 = weights_HN.sum(1)[:, None, None]
    n_H11 = frames_H11.clamp(min=4)
    corrections_HLL = totals_HL[:, :, None] * totals_HL[:, None] / ((n_H11 - 1) * (n_H11 - 2)) - (
        rows_HLN @ rows_HLN.mT
    ) * (2 / (n_H11 - 2))
    traces_PPLL = _traces(units, part_N)
    traces_HLL = torch.einsum("hp,hq,pqij->hij", members_HP, members_HP, traces_PPLL)
    variances_L = torch.stack(scales).square()
    hsic_HLL = (traces_HLL + corrections_HLL) / (n_H11 - 3) * torch.outer(variances_L, variances_L)
    return hsic_HLL.where(frames_H11 >= 4, 0)


def _traces(layers: Sequence[Tensor], part_N: Tensor | None) -> Tensor:
    """tr(KM) of every pair of Gram matrices without their diagonals, by the parts of rows and columns (P, P, L, L).

    As K and M are symmetric, the trace is the sum of the products of all entries: one matrix product of the flattened
    Gram matrices for all pairs of layers. Only the blocks on and above the diagonal are computed, one at a time of all
    layers, so that they never leave the cache.
    """
    N, device = len(layers[0]), layers[0].device
    # Half precision is multiplied with, not summed in.
    sums = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
    sizes = [N] if part_N is None else torch.bincount(part_N, minlength=PARTS).tolist()
    blocks = [
        (part, slice(top, min(top + BLOCK, end)))
        for part, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True))
        for top in range(end - size, end, BLOCK)
    ]
    traces_PPLL = torch.zeros(PARTS, PARTS, len(layers), len(layers), dtype=torch.float64, device=device)
    for number, (part, rows) in enumerate(blocks):
        for other, columns in blocks[number:]:
            grams = [x_ND[rows] @ x_ND[columns].T for x_ND in layers]
            if rows == columns:
                for gram_RR in grams:
                    gram_RR.fill_diagonal_(0)
            flat_LF = torch.stack(grams).flatten(1).to(sums)
            traces_LL = flat_LF @ flat_LF.T
            traces_PPLL[part, other] += traces_LL
            if rows != columns:
                traces_PPLL[other, part] += traces_LL
    return traces_PPLL


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
) -> Similarity:
    """CKA between all layers h_0 … h_L of an encoder over some speech, padding excluded, raw and of normalized frames.

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
        of (L+1, L+1), or (L, L) without h_0; over the audio of all ranks, and the same on each. Halves of the audio are
        measured by the minibatch estimator, if there are eight utterances.

    Raises:
        InputError: an unknown estimator, no audio, or a layer that is constant or not finite.
    """
    first_layer = 0 if include_features else 1
    device = next(encoder.parameters()).device
    half = multiplies_bfloat16(device) if precision == "auto" else precision == "bf16"
    cka: MinibatchCKA | _ExactOfBoth
    if estimator == "minibatch":
        gram_dtype = torch.bfloat16 if half else torch.float32
        cka = MinibatchCKA(
            batch_frames,
            first_layer=first_layer,
            seed=seed,
            gram_dtype=gram_dtype,
            views=get_args(View),
            halves=HALVES,
        )
    elif estimator == "exact":
        cka = _ExactOfBoth(first_layer)
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
    return cka.similarity()


def compare_layers(teacher: Encoder, student: Encoder, batches: Iterable[AudioBatch]) -> Tensor:
    """CKA between each layer h_0 … h_L of the student and the same layer of the teacher (L+1,), float64 on the CPU.

    For one process: other ranks take no part.

    Args:
        teacher, student: of the same depth, on the same device.
        batches: speech that both hear.

    Raises:
        InputError: no audio, or a layer that is constant or not finite.
    """
    device, cka = next(teacher.parameters()).device, MinibatchCKA(alone=True)
    modes = [(encoder, encoder.training) for encoder in (teacher, student)]
    try:
        with torch.inference_mode():
            for batch in batches:
                heard = batch.waveforms_BT.to(device), batch.lengths_B.to(device)
                both = [encoder.eval()(*heard) for encoder in (teacher, student)]
                cka.update([state_BTD for out in both for state_BTD in out.layers], both[0].lengths_B)
    finally:
        for encoder, training in modes:
            encoder.train(training)
    return cka.compute()[: len(teacher.layers) + 1, len(teacher.layers) + 1 :].diagonal()


def _valid_frames(layers: Sequence[Tensor], lengths_B: Tensor | None, first_layer: int) -> list[Tensor]:
    """The frames of every layer that are not padding (F, D), float32, in their order."""
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


def _normalize(hsic_LL: Tensor, first_layer: int = 0) -> Tensor:
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
