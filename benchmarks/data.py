"""Reading audio, cropping it into training batches, and writing the cache of hidden states.

python -m benchmarks.data [--quick] --json FILE

In the rows of reading the peer is the audio itself: `ratio` is how many times faster than real time one core reads. The
files are noise with the spectrum and the pauses of speech, 16 kHz mono, as LibriSpeech has them; those at 44.1 kHz are
stereo and are mixed down and resampled. A row with soundfile beside it is the file decoded and nothing else. In the
rows of the cache the peer is encoding alone.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import CutSet

from benchmarks.common import Report, interleaved, parse, parser
from skill_speech.data import TrainingBatches, audio_loader, load_waveform, prepare
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.evaluation.cache import StateCache
from skill_speech.evaluation.protocol import AudioConfig
from skill_speech.evaluation.states import HiddenStates, Reduction
from skill_speech.evaluation.upstream import open_upstream

REAL_TIME = 500.0
CACHE = 0.9
"""With writing, the encoder may be so much slower than without."""

KINDS = (("flac", 16_000, 1), ("wav", 16_000, 1), ("flac", 44_100, 2), ("wav", 44_100, 2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    options = parse(parser("data", __doc__), arguments)
    torch.set_num_threads(1)  # seconds of one core
    report = Report("reading audio, on one core", options)
    files, repeats, batches = (12, 3, 4) if options.quick else (80, 5, 12)
    with tempfile.TemporaryDirectory() as name:
        for kind, rate, channels in KINDS:
            folder = Path(name) / f"{kind}-{rate}"
            make_files(folder, kind, rate, channels, files)
            measure_reading(report, prepare(str(folder), str(folder / "cuts.jsonl.gz")), rate, kind, repeats, batches)
        for reduction in ("frames", "mean"):
            measure_cache(report, Path(name), reduction, 2 if options.quick else 16)
    report.write(options.json)
    return 0


def make_files(folder: Path, kind: str, rate: int, channels: int, count: int) -> None:
    """Files of 8 to 16 s, and one of five minutes, of which training reads windows."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        seconds = 300.0 if number == 0 else generator.uniform(8, 16)
        samples = round(seconds * rate)
        # Half of the power below 500 Hz, and syllables four times a second: FLAC packs it as it packs speech.
        noise_TC = generator.standard_normal((samples, channels))
        steps_T = np.arange(samples) / rate
        smooth_TC = np.cumsum(noise_TC, axis=0) * 0.01
        smooth_TC = smooth_TC - np.roll(smooth_TC, rate // 500, axis=0)
        envelope_T = np.clip(np.sin(2 * np.pi * 4 * steps_T) + 0.3 * np.sin(2 * np.pi * 0.3 * steps_T), 0, 1)
        audio_TC = (smooth_TC + 0.02 * noise_TC) * envelope_T[:, None]
        soundfile.write(folder / f"{number}.{kind}", np.clip(audio_TC, -0.9, 0.9), rate, subtype="PCM_16")


def measure_reading(report: Report, cuts: CutSet, rate: int, kind: str, repeats: int, batches: int) -> None:
    """Whole files, and crops by the loader that training uses."""
    whole = [cut for cut in cuts if cut.duration < 100]
    seconds = sum(cut.duration for cut in whole)
    paths = [cut.recording.sources[0].source for cut in whole]

    def crops() -> float:
        loader = iter(audio_loader(TrainingBatches(cuts, batch_seconds=60)))
        return sum(next(loader).waveforms_BT.numel() for _ in range(batches)) / 16_000

    cropped = crops()
    times = interleaved(
        {
            "soundfile": lambda: [soundfile.read(path, dtype="float32") for path in paths],
            "whole": lambda: [load_waveform(cut) for cut in whole],
            "crops": crops,
        },
        repeats,
    )
    what = f"{kind}, {rate / 1000:g} kHz"
    goal = REAL_TIME if rate == 16_000 else None
    report.add(f"{what}: whole files", seconds, times["whole"].minimum, goal)
    report.add(f"{what}: training batches", cropped, times["crops"].minimum, goal)
    report.add(f"{what}: whole files against soundfile", times["soundfile"].minimum, times["whole"].minimum)


def measure_cache(report: Report, folder: Path, reduction: Reduction, utterances: int) -> None:
    """Encoding with and without writing the hidden states of a HuBERT Base, random weights."""
    torch.manual_seed(0)
    Encoder(hubert_config()).save_pretrained(folder / "teacher")
    upstream = open_upstream(str(folder / "teacher"), torch.device("cpu"))
    cuts = [cut for cut in CutSet.from_file(folder / "wav-16000/cuts.jsonl.gz") if cut.duration < 100][:utterances]
    filled = 0

    def fill() -> None:
        nonlocal filled
        filled += 1
        cache = StateCache(folder / f"cache-{reduction}-{filled}", upstream.fingerprint, 1e12)
        HiddenStates(upstream, cuts, AudioConfig(), reduction, cache).fill("benchmark")

    bare = HiddenStates(upstream, cuts, AudioConfig(), reduction, None)
    upstream.encode([torch.randn(16_000)])  # lets torch set itself up
    times = interleaved({"encode": lambda: bare.get(range(len(cuts))), "fill": fill}, 2, warm_up=0)
    name = f"cache of {reduction}: filling against encoding"
    report.add(name, times["encode"].minimum, times["fill"].minimum, CACHE)


if __name__ == "__main__":
    sys.exit(main())
