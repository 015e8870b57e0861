"""Pre-train a small teacher: HuBERT-style masked prediction of units, with our own encoder.

    python -m lab.pretraining --config lab/teachers/hubert-mini/config.yaml --corpus data/speech --output runs/teacher

A killed run continues from its last checkpoint; every batch is a function of the seed and its number.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lab.corpus import Utterance, read_corpus
from lab.features import HOP, WINDOW, log_mel
from lab.units import Units, layer_units, mfcc_units, phoneme_units, speaker_units
from skill_speech import Encoder
from skill_speech.encoder import hubert_config, wavlm_config
from skill_speech.files import atomic_write
from skill_speech.kernels import attach_kernels


@dataclass
class Target:
    """What a layer predicts of every frame.

    Targets at several depths make the layers of a teacher as different as those of a large one, where lower layers know
    the sound and upper ones what is said.

    Attributes:
        units: "mfcc" and "layer" are k-means on MFCC and on a layer of the previous round's model; "phonemes" are the
            true ones, which can stand in for the first round, and so are "speakers".
        clusters: of the k-means.
        layer: of the previous round's model, 0 … L.
        at: the layer that predicts them, 1 … L; None for the last one.
        ahead: frames by which they lie in the future.
    """

    units: Literal["mfcc", "layer", "phonemes", "speakers"] = "mfcc"
    clusters: int = 100
    layer: int = 6
    at: int | None = None
    ahead: int = 0


@dataclass
class Iteration:
    """One round of masked prediction.

    Attributes:
        targets: what is predicted; their losses are averaged.
        steps: updates.
        learning_rate: peak; falls linearly to zero.
        fresh: start from new weights (but for the warm-started front end) instead of the previous round's.
    """

    targets: list[Target] = field(default_factory=lambda: [Target()])
    steps: int = 5_000
    learning_rate: float = 6e-4
    fresh: bool = True

    @classmethod
    def of(cls, values: dict[str, Any]) -> Iteration:
        """From YAML."""
        return cls(**values | {"targets": [Target(**row) for row in values["targets"]]})


@dataclass
class PretrainingConfig:
    """A small teacher and how it learns.

    Attributes:
        family: "hubert" or "wavlm"; the latter also hears a second speaker or noise over its input and has to predict
            the units of the first (arXiv 2110.13900, section 3.2).
        hidden_size, depth, num_heads, units, channels, positional_kernel: the shape.
        warm_steps: updates in which the front end alone regresses log-mel energies first; a raw-waveform front end is
            what learns slowest.
        iterations: the rounds.
        crops, crop_seconds: a batch.
        warmup_steps: of the learning rate, in every round.
        mask_length, mask_share: frames per mask and share of frames masked, about.
        unmasked_weight: weight of the loss on frames that are not masked.
        mix_share: share of crops that are mixed with another, for "wavlm".
        seed: of everything.
    """

    family: Literal["hubert", "wavlm"] = "hubert"
    hidden_size: int = 192
    depth: int = 12
    num_heads: int = 6
    units: int = 768
    channels: int = 128
    positional_kernel: int = 64
    warm_steps: int = 1_500
    iterations: list[Iteration] = field(default_factory=lambda: [Iteration(), Iteration([Target("layer")])])
    crops: int = 2
    crop_seconds: float = 5.0
    warmup_steps: int = 500
    mask_length: int = 4
    mask_share: float = 0.37
    unmasked_weight: float = 0.5
    mix_share: float = 0.3
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> PretrainingConfig:
        """From a YAML file."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values["iterations"] = [Iteration.of(row) for row in values["iterations"]]
        return cls(**values)

    def make_encoder(self) -> Encoder:
        """The encoder with fresh weights, the same every time."""
        torch.manual_seed(self.seed)
        factory = hubert_config if self.family == "hubert" else wavlm_config
        return attach_kernels(
            Encoder(
                factory(
                    hidden_size=self.hidden_size,
                    depth=self.depth,
                    num_heads=self.num_heads,
                    units=self.units,
                    channels=self.channels,
                    positional_kernel=self.positional_kernel,
                )
            )
        )


class Streams:
    """The utterances of each speaker one after the other, so that a crop of any length can start at any frame."""

    def __init__(self, corpus: list[Utterance], units: Sequence[Units] = ()) -> None:
        audio: dict[str, list[npt.NDArray[np.int16]]] = {}
        labels: dict[str, list[npt.NDArray[np.int64]]] = {}
        for index, utterance in enumerate(corpus):
            speaker = utterance.speaker
            # Whole hops, so that frames of the stream are those of the utterances (the last one of each looks 5 ms
            # into the next utterance).
            audio.setdefault(speaker, []).append(utterance.samples_T[: utterance.frames * HOP])
            labels.setdefault(speaker, []).append(np.stack([one[index] for one in units] or [[0] * utterance.frames]))
        self.audio = [np.concatenate(parts) for parts in audio.values()]
        self.labels_NT = [np.concatenate(parts, axis=1) for parts in labels.values()]
        sizes = np.array([labels_NT.shape[1] for labels_NT in self.labels_NT], float)
        self.share = sizes / sizes.sum()

    def batch(self, rng: np.random.Generator, crops: int, seconds: float) -> tuple[Tensor, Tensor]:
        """Random crops: waveforms (B, T) and units (B, N, frames) for N targets."""
        frames = round(seconds * 50)
        waveforms, units = [], []
        while len(waveforms) < crops:
            stream = rng.choice(len(self.audio), p=self.share)
            last = self.labels_NT[stream].shape[1] - frames - 1
            if last < 0:
                continue
            start = int(rng.integers(last + 1))
            samples_T = self.audio[stream][start * HOP : (start + frames - 1) * HOP + WINDOW]
            waveforms.append(torch.from_numpy(samples_T.astype(np.float32) / 32768))
            units.append(torch.from_numpy(self.labels_NT[stream][:, start : start + frames]))
        return torch.stack(waveforms), torch.stack(units)


def random_mask(rng: np.random.Generator, shape: tuple[int, int], length: int, share: float) -> Tensor:
    """Masked frames (B, T): spans of `length` that start anywhere, in such number that about `share` is masked."""
    starts = rng.random(shape) < 1 - (1 - share) ** (1 / length)
    mask = np.zeros(shape, bool)
    for offset in range(length):
        mask[:, offset:] |= starts[:, : shape[1] - offset]
    return torch.from_numpy(mask)


def mix(rng: np.random.Generator, waveforms_BT: Tensor, share: float) -> Tensor:
    """Put another crop of the batch, or noise, over at most half of some crops, 0 to 15 dB below them."""
    mixed_BT = waveforms_BT.clone()
    B, T = waveforms_BT.shape
    for row in range(B):
        if rng.random() >= share:
            continue
        length = int(rng.integers(1, T // 2))
        start, source = rng.integers(0, T - length, 2)
        other = int(rng.integers(B))
        noise = torch.from_numpy(rng.standard_normal(length).astype(np.float32))
        over = noise if other == row else waveforms_BT[other, source : source + length]
        level = waveforms_BT[row].std() / (over.std() + 1e-5) * 10 ** (-rng.uniform(0, 15) / 20)
        mixed_BT[row, start : start + length] += level * over
    return mixed_BT


class Masked(nn.Module):
    """Encoder, mask embedding and a classifier of units for each target.

    Args:
        encoder: to be trained.
        targets: what is predicted.
        classes: units of each.
    """

    def __init__(self, encoder: Encoder, targets: Sequence[Target], classes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self.places = [encoder.config.num_layers if target.at is None else target.at for target in targets]
        self.mask_embedding = nn.Parameter(torch.rand(encoder.config.hidden_size) * 0.1)
        self.heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, count) for count in classes)
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)

    def forward(self, waveforms_BT: Tensor, mask_BT: Tensor) -> list[Tensor]:
        """Logits (B, T, units) of every target, from its layer."""
        features_BTD, _ = self.encoder.features(waveforms_BT)
        features_BTD = torch.where(mask_BT[..., None], self.mask_embedding.to(features_BTD.dtype), features_BTD)
        outputs = self.encoder.context(features_BTD).layer_outputs
        return [head(outputs[place - 1]) for head, place in zip(self.heads, self.places, strict=True)]


class Log:
    """Rows of a CSV file, kept through a restart up to the step that a run goes on from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def forget(self, round_name: str, step: int) -> None:
        """Drop rows of a round after a step."""
        self.rows = [row for row in self.rows if row["round"] != round_name or int(row["step"]) <= step]

    def add(self, round_name: str, step: int, **values: float) -> None:
        """One row, in the file at once."""
        row = {"round": round_name, "step": str(step), **{name: f"{value:.4f}" for name, value in values.items()}}
        self.rows.append(row)
        names = dict.fromkeys(name for row in self.rows for name in row)
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def train(
    module: nn.Module,
    step_loss: object,
    *,
    name: str,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    folder: Path,
    log: Log,
    bfloat16: bool,
    audio_per_step: float,
    checkpoint_every: int = 500,
    log_every: int = 100,
) -> None:
    """AdamW with warm-up and linear decay over `step_loss(step) -> (loss, things to log)`; a killed one goes on."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    path, first = folder / f"{name}.checkpoint.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log.forget(name, first)
        print(f"{name}: going on at step {first}", flush=True)
    module.train()
    sums: dict[str, float] = {}
    clock = time.perf_counter()
    for step in range(first, steps):
        share = min((step + 1) / warmup_steps, (steps - step) / max(1, steps - warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss, values = step_loss(step)  # type: ignore[operator]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        for key, value in {"loss": loss, **values}.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        done = step + 1
        if done % log_every == 0 or done == steps:
            count = (done - 1) % log_every + 1
            speed = audio_per_step * count / (time.perf_counter() - clock)
            log.add(name, done, **{k: v / count for k, v in sums.items()}, audio_seconds_per_second=speed)
            sums, clock = {}, time.perf_counter()
        if done % checkpoint_every == 0 or done == steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            with atomic_write(path) as temporary:
                torch.save(state, temporary)


def warm_start(
    encoder: Encoder, streams: Streams, config: PretrainingConfig, folder: Path, log: Log, bf16: bool
) -> None:
    """Let the front end regress log-mel energies, in place."""
    front = nn.ModuleDict({"convs": encoder.convs, "projection": encoder.projection})
    front["head"] = nn.Linear(config.hidden_size, 40)

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([config.seed, 0, step])
        waveforms_BT, _ = streams.batch(rng, config.crops, config.crop_seconds)
        wanted_BTM = (log_mel(waveforms_BT.float()) + 5) / 4  # about zero mean and unit variance
        features_BTD, _ = encoder.features(waveforms_BT)
        return F.mse_loss(front["head"](features_BTD).float(), wanted_BTM), {}

    train(
        front,
        step_loss,
        name="warm",
        steps=config.warm_steps,
        learning_rate=1e-3,
        warmup_steps=50,
        folder=folder,
        log=log,
        bfloat16=bf16,
        audio_per_step=config.crops * config.crop_seconds,
    )


def prediction_loss(
    logits_BTU: Tensor, units_BT: Tensor, mask_BT: Tensor, ahead: int, unmasked_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the units `ahead` frames later, on masked frames and, less, on the others; and what to log.

    Frames whose future is outside of the crop are left out.
    """
    frames = units_BT.shape[1] - ahead
    logits_BTU, units_BT, mask_BT = logits_BTU[:, :frames], units_BT[:, ahead:], mask_BT[:, :frames]
    loss_BT = F.cross_entropy(logits_BTU.transpose(1, 2), units_BT, reduction="none")
    right_BT = (logits_BTU.argmax(-1) == units_BT).float()
    masked, seen = loss_BT[mask_BT].mean(), loss_BT[~mask_BT].mean()
    return masked + unmasked_weight * seen, {
        "loss_masked": masked,
        "loss_unmasked": seen,
        "accuracy_masked": right_BT[mask_BT].mean(),
        "accuracy_unmasked": right_BT[~mask_BT].mean(),
    }


def run_iteration(
    number: int, model: Masked, streams: Streams, config: PretrainingConfig, folder: Path, log: Log, bf16: bool
) -> None:
    """One round of masked prediction, in place."""
    iteration = config.iterations[number]

    def step_loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng([config.seed, number + 1, step])
        waveforms_BT, units_BNT = streams.batch(rng, config.crops, config.crop_seconds)
        if config.family == "wavlm":
            waveforms_BT = mix(rng, waveforms_BT, config.mix_share)
        B, _, T = units_BNT.shape
        mask_BT = random_mask(rng, (B, T), config.mask_length, config.mask_share)
        losses, logged = [], {}
        for target, logits_BTU, units_BT in zip(
            iteration.targets, model(waveforms_BT, mask_BT), units_BNT.unbind(1), strict=True
        ):
            loss, values = prediction_loss(logits_BTU.float(), units_BT, mask_BT, target.ahead, config.unmasked_weight)
            losses.append(loss)
            place = "" if len(iteration.targets) == 1 else f"_{target.units}@{target.at or config.depth}"
            logged |= {f"{name}{place}": value for name, value in values.items()}
        return torch.stack(losses).mean(), logged

    train(
        model,
        step_loss,
        name=f"round{number + 1}",
        steps=iteration.steps,
        learning_rate=iteration.learning_rate,
        warmup_steps=config.warmup_steps,
        folder=folder,
        log=log,
        bfloat16=bf16,
        audio_per_step=config.crops * config.crop_seconds,
    )


def pretrain(config: PretrainingConfig, corpus: list[Utterance], folder: Path, *, bf16: bool = True) -> Encoder:
    """All rounds; writes checkpoints, log.csv, config.yaml and the encoder as float16 into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    log = Log(folder / "log.csv")
    encoder = config.make_encoder()
    warm_start(encoder, Streams(corpus), config, folder, log, bf16)
    warm = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    for number, iteration in enumerate(config.iterations):
        units = _units(number, iteration, corpus, encoder, config, folder)
        if iteration.fresh:
            encoder.load_state_dict(warm)
        torch.manual_seed(config.seed + number + 1)
        masked = Masked(encoder, iteration.targets, [1 + int(max(x.max() for x in one)) for one in units])
        run_iteration(number, masked, Streams(corpus, units), config, folder, log, bf16)
    encoder.eval()
    save_half(encoder, folder)
    return encoder


def save_half(encoder: Encoder, folder: Path) -> None:
    """config.json and model.safetensors, the weights as float16."""
    encoder.save_pretrained(folder)
    path = folder / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(path).items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(halves, metadata={"format": "pt"}))


def _units(
    number: int,
    iteration: Iteration,
    corpus: list[Utterance],
    encoder: Encoder,
    config: PretrainingConfig,
    folder: Path,
) -> list[Units]:
    """Units of a round's targets, made once: after a restart they are read back."""
    path = folder / f"round{number + 1}.units.npz"
    if not path.exists():
        made = [_made_units(target, corpus, encoder, config.seed) for target in iteration.targets]
        rows = {f"units{place}": np.concatenate(one).astype(np.int16) for place, one in enumerate(made)}
        with atomic_write(path) as temporary:
            np.savez(temporary, lengths=[utterance.frames for utterance in corpus], **rows)
    with np.load(path) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        return [np.split(file[f"units{place}"].astype(np.int64), ends) for place in range(len(iteration.targets))]


def _made_units(target: Target, corpus: list[Utterance], encoder: Encoder, seed: int) -> Units:
    if target.units == "phonemes":
        return phoneme_units(corpus)[0]
    if target.units == "speakers":
        return speaker_units(corpus)
    if target.units == "mfcc":
        return mfcc_units(corpus, target.clusters, seed)
    return layer_units(corpus, encoder, target.layer, target.clusters, seed)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train a small teacher on synthetic speech.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "float32"), default="bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = read_corpus(arguments.corpus)
    hours = sum(len(utterance.samples_T) for utterance in corpus) / 16_000 / 3600
    print(f"{len(corpus)} utterances, {hours:.2f} hours", flush=True)
    pretrain(PretrainingConfig.read(arguments.config), corpus, arguments.output, bf16=arguments.precision == "bf16")


if __name__ == "__main__":
    main()
