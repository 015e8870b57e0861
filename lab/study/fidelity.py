"""What a student still knows of every layer of its teacher: how well one of its layers tells it, by a linear map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.corpora.noisy import in_noise
from skill_speech import load_encoder
from skill_speech.data import SAMPLE_RATE, AudioBatch, audio_loader, evaluation_batches, open_cuts
from skill_speech.encoder import Encoder

SECONDS = 240.0
BATCH_SECONDS = 30.0
RIDGE = 1e-3
"""Weight of the penalty, as a share of the mean variance of what is mapped."""


def fidelity(teacher: str, student: str, speech: Path, noise_db: float | None = None) -> dict[str, list[Any]]:
    """Share of the variance of h_0 … h_L of the teacher that a linear map of the best student layer explains.

    The maps are fitted by ridge regression on every other batch of a sample of SPEECH and judged on the rest. Every
    dimension of a layer counts the same, whatever its variance.

    Args:
        teacher, student: what `load_encoder` takes.
        speech: a folder of audio.
        noise_db: also fit and judge maps where the student hears noise of this signal-to-noise ratio and the teacher
            does not. (Maps fitted without noise tell nothing there of a teacher that has never heard any.)

    Returns:
        "explained": (L+1,) at most 1; "layer": (L+1,) the student's layer that explains most; with noise,
        "explained_in_noise": (L+1,).
    """
    batches = evaluation_batches(
        open_cuts(str(speech)), batch_seconds=BATCH_SECONDS, limit_seconds=SECONDS, seed=0, max_seconds=BATCH_SECONDS
    )
    pair = load_encoder(teacher).eval(), load_encoder(student).eval()

    def best(noise_db: float | None) -> tuple[list[float], list[int]]:
        halves = [_frames(*pair, batches[half::2], noise_db) for half in (0, 1)]
        best_L = explained_variance(*halves[0], *halves[1]).max(0)
        return [round(value, 5) for value in best_L.values.tolist()], best_L.indices.tolist()

    explained, layers = best(None)
    found: dict[str, list[Any]] = {"explained": explained, "layer": layers}
    if noise_db is not None:
        found["explained_in_noise"], _ = best(noise_db)
    return found


def explained_variance(fit_LND: Tensor, fit_SNE: Tensor, test_LND: Tensor, test_SNE: Tensor) -> Tensor:
    """R² on the test frames of ridge regressions from every one of S layers to every one of L layers.

    Args:
        fit_LND, test_LND: layers to be told, (L, frames, D).
        fit_SNE, test_SNE: layers that tell them, (S, frames, E), the same frames.

    Returns:
        (S, L) float64, at most 1: the mean over the D dimensions of 1 - error / variance, with the variance of the test
        frames around the mean of the fitted ones.
    """
    layers, frames, width = fit_LND.shape
    mean_L1D, spread_L1D = fit_LND.double().mean(1, keepdim=True), fit_LND.double().std(1, keepdim=True)

    def scaled(layers_LND: Tensor) -> Tensor:
        scaled_LND = (layers_LND.double() - mean_L1D) / spread_L1D
        return scaled_LND.transpose(0, 1).reshape(layers_LND.shape[1], layers * width)

    fit_NK, test_NK = scaled(fit_LND), scaled(test_LND)
    rows = []
    for fit_NE, test_NE in zip(fit_SNE.double(), test_SNE.double(), strict=True):
        mean_E = fit_NE.mean(0)
        x_NE = fit_NE - mean_E
        gram_EE = x_NE.T @ x_NE / frames
        penalty = RIDGE * gram_EE.diagonal().mean()
        map_EK = torch.linalg.solve(gram_EE + penalty * torch.eye(len(gram_EE)), x_NE.T @ fit_NK / frames)
        error_K = (test_NK - (test_NE - mean_E) @ map_EK).square().mean(0)
        rows.append((1 - error_K / test_NK.square().mean(0)).reshape(layers, width).mean(1))
    return torch.stack(rows)


def _frames(teacher: Encoder, student: Encoder, batches: list[Any], noise_db: float | None) -> tuple[Tensor, Tensor]:
    """All layers of both over the frames of some batches, without padding: (L+1, N, D) and (S+1, N, E)."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.inference_mode():
        for batch in audio_loader(batches):
            waveforms_BT = batch.waveforms_BT
            heard_BT = waveforms_BT if noise_db is None else _noisy(batch, noise_db)
            for encoder, given_BT, parts in zip((teacher, student), (waveforms_BT, heard_BT), found, strict=True):
                out = encoder(given_BT, batch.lengths_B)
                valid_BT = torch.arange(out.layers[0].shape[1]) < out.lengths_B[:, None]
                parts.append(torch.stack([layer_BTD[valid_BT] for layer_BTD in out.layers]))
    return torch.cat(found[0], 1), torch.cat(found[1], 1)


def _noisy(batch: AudioBatch, noise_db: float) -> Tensor:
    """The waveforms of a batch in noise, each a function of its name."""
    noisy_BT = torch.zeros_like(batch.waveforms_BT)
    for row, (name, length) in enumerate(zip(batch.ids, batch.lengths_B.tolist(), strict=True)):
        clean_T = batch.waveforms_BT[row, :length].numpy()
        noisy_BT[row, :length] = torch.from_numpy(in_noise(clean_T, noise_db, SAMPLE_RATE, name))
    return noisy_BT
