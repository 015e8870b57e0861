"""What int8 and int4 cost a student, with and without a quantisation-aware stage 2: a JSON record each, and the table.

    python -m lab.speech --output data/speech --hours 0.3
    python -m lab.speech --output data/test --hours 0.15 --seed 1
    python -m lab.quantization run --data data/speech --test data/test --output runs/quantization
    python -m lab.quantization tables

A cell is a teacher, what its student was trained for in stage 2 ("none", "int8", "int4"; "teacher" is the teacher as it
is) and a seed. Students of a teacher share stage 1 and surgery. `run` makes the records that are missing; `tables`
writes the table in docs/quantization.md. Every form of a student is compared with its float32: the error of the last
hidden state, the distillation loss and the cosine to the teacher's last hidden state, and the phonemes that a linear
probe reads off the state it learned from in float32.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from lab.corpus import Utterance, read_corpus
from lab.int8 import Probes
from skill_speech import export, load_encoder, optimize
from skill_speech.checkpoints.weights import fill, read_weights
from skill_speech.compression import AnalysisConfig, StageConfig, compress
from skill_speech.distillation import DistillationLoss, make_targets
from skill_speech.encoder import Encoder
from skill_speech.environment import environment
from skill_speech.files import write_json
from skill_speech.similarity import load_analysis

HERE = Path(__file__).parents[1]
RECORDS = HERE / "lab" / "results" / "quantization"
DOCS = HERE / "docs" / "quantization.md"
TEACHERS = ("hubert-mini", "wavlm-mini")
TRAINED = ("teacher", "none", "int8", "int4")
UPDATES = (60, 300)
UTTERANCES = 40
"""That teach the probes, and as many by other speakers that everything is measured on."""

States = list[Tensor]
"""h_0 … h_L of an utterance, each (T, D)."""
SHOWN = {
    "teacher": ("int8, ONNX", "int8, optimize", "int8-float32, optimize", "bf16, optimize", "int4, ONNX"),
    "none": ("int8, ONNX", "int8, optimize", "int8-float32, optimize", "bf16, optimize", "int4, ONNX"),
    "int8": ("int8, ONNX", "int8, optimize", "int8-float32, optimize"),
    "int4": ("int4, ONNX",),
}


def make_student(teacher: str, trained: str, seed: int, data: str, output: Path) -> Path:
    """A run at three quarters, begun from the surgery of the one without quantisation; finished runs stay."""
    common: dict[str, Any] = {"learning_rate": 1e-3, "batch_seconds": 8.0, "student_dropout": False}
    folder = output / f"{teacher}-{trained}-{seed}"
    before = make_student(teacher, "none", seed, data, output) / "surgery" if trained != "none" else None
    compress(
        str(HERE / "lab" / "teachers" / teacher),
        data,
        str(folder),
        sparsity=0.75,
        control="one-shot",
        quantization=None if trained == "none" else trained,  # type: ignore[arg-type]
        start_from=None if before is None else str(before),
        analysis=AnalysisConfig(calibration_seconds=300),
        stage1=StageConfig(steps=UPDATES[0], warmup_steps=18, sparsity_steps=6, **common),
        stage2=StageConfig(steps=UPDATES[1], warmup_steps=50, **common),  # type: ignore[arg-type]
        validation_seconds=60,
        validate_every=10_000,
        checkpoint_every=10_000,
        precision="float32",
        seed=seed,
    )
    return folder


def forms_of(model: str, folder: Path) -> dict[str, tuple[Callable[[Tensor], States], float | None]]:
    """Every form of an encoder: what it makes of a waveform (T,), and megabytes of its file."""
    whole = load_encoder(model).eval()

    def in_torch(encoder: Any) -> Callable[[Tensor], States]:
        return lambda waveform_T: [state_BTD[0] for state_BTD in encoder(waveform_T[None]).layers]

    def in_onnx(path: Path) -> Callable[[Tensor], States]:
        session = onnxruntime.InferenceSession(path)
        names = [f"hidden_state_{number}" for number in range(1, whole.config.num_layers + 1)]

        def encode(waveform_T: Tensor) -> States:
            waveforms, lengths = waveform_T[None].numpy(), np.array([len(waveform_T)])
            made = session.run(names, {"waveforms": waveforms, "lengths": lengths})
            # h_0 is no output; nothing in front of it is rounded.
            return [whole(waveform_T[None]).features_BTD[0], *(torch.from_numpy(state[0]) for state in made)]

        return encode

    forms: dict[str, tuple[Callable[[Tensor], States], float | None]] = {"float32": (in_torch(whole), None)}
    for precision in ("bf16", "int8", "int8-float32"):
        forms[f"{precision}, optimize"] = in_torch(optimize(copy.deepcopy(whole), precision)), None  # type: ignore[arg-type]
    for quantize in ("int8", "int4"):
        made = export(model, str(folder / quantize), format="onnx", quantize=quantize)  # type: ignore[arg-type]
        forms["float32"] = forms["float32"][0], made.measurements[1].size / 1e6
        forms[f"{quantize}, ONNX"] = in_onnx(folder / quantize / "model.onnx"), made.measurements[2].size / 1e6
    return forms


@torch.no_grad()
def measure(run: Path | None, teacher: str, corpus: list[Utterance]) -> dict[str, Any]:
    """What every form of a student is worth; of the teacher itself without a run."""
    source = str(HERE / "lab" / "teachers" / teacher)
    whole = load_encoder(source).eval()
    distance = None if run is None else distance_of(run, whole)
    train, test = split(corpus)
    inventory = sorted({phoneme for one in (*train, *test) for phoneme in one.frame_phonemes()})
    number = {phoneme: index for index, phoneme in enumerate(inventory)}
    taught_N, told_N = (
        torch.tensor([number[phoneme] for one in part for phoneme in one.frame_phonemes()]) for part in (train, test)
    )
    wanted = [[state_BTD[0] for state_BTD in whole(one.waveform()[None]).layers] for one in test]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        forms = forms_of(source if run is None else str(run / "model"), Path(folder))
        encode = forms["float32"][0]
        heard = together([encode(one.waveform()) for one in train])
        with torch.enable_grad():
            probes = Probes(heard, taught_N, len(inventory))
        exact = [encode(one.waveform()) for one in test]
        best = int(probes.accuracy(together(exact), told_N).argmax())
        for name, (encode, size) in forms.items():
            states = exact if name == "float32" else [encode(one.waveform()) for one in test]
            last, last_exact, last_wanted = (together(of)[-1] for of in (states, exact, wanted))
            rows[name] = {
                "megabytes": None if size is None else round(size, 2),
                "error": round(float((last - last_exact).norm() / last_exact.norm()), 5),
                "cosine_to_teacher": round(float(F.cosine_similarity(last, last_wanted, dim=-1).mean()), 5),
                "loss": None if distance is None else round(mean_loss(distance, states, wanted), 5),
                "phoneme_accuracy": round(float(probes.accuracy(together(states), told_N)[best]), 5),
            }
    return {"forms": rows, "frames": len(told_N), "probe": best}


def distance_of(run: Path, teacher: Encoder) -> DistillationLoss:
    """What the run minimised, with the projections of its end."""
    groups = load_analysis(run / "analysis").clusters
    targets = make_targets("skill", teacher.config.num_layers, groups)
    distance = DistillationLoss(targets, teacher.config.hidden_size)
    path = run / "stage2" / "student" / "projections.safetensors"
    fill(distance, read_weights(path), str(path))
    return distance


def mean_loss(distance: DistillationLoss, states: list[States], wanted: list[States]) -> float:
    """The distillation loss over all frames."""
    losses, frames = [], [len(of[0]) for of in states]
    for mine, theirs in zip(states, wanted, strict=True):
        batches = [[state_TD[None] for state_TD in of] for of in (mine, theirs)]
        losses.append(float(distance.of_layers(*batches)["distillation"]))
    return sum(loss * count for loss, count in zip(losses, frames, strict=True)) / sum(frames)


def together(utterances: list[States]) -> Tensor:
    """All frames of h_1 … h_L (L, N, D)."""
    return torch.stack([torch.cat(layer) for layer in list(zip(*utterances, strict=True))[1:]])


def split(corpus: list[Utterance]) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances that teach the probes, and others of other speakers."""
    speakers = sorted({utterance.name.split("-")[0] for utterance in corpus})
    random.Random(0).shuffle(speakers)
    teaching = set(speakers[::2])
    order = random.Random(0).sample(corpus, len(corpus))
    parts = ([one for one in order if (one.name.split("-")[0] in teaching) == wanted] for wanted in (True, False))
    train, test = (part[:UTTERANCES] for part in parts)
    return train, test


def table() -> str:
    """Markdown of all records."""
    lines = [
        "| | stage 2 | form | MB | error | loss | cosine to the teacher | phonemes |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for teacher, trained in itertools.product(TEACHERS, TRAINED):
        for path in sorted(RECORDS.glob(f"{teacher}-{trained}-*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            for form in ("float32", *SHOWN[trained]):
                row = record["forms"][form]
                who = teacher if trained == "teacher" else f"{teacher}'s student"
                plain = {"teacher": "", "none": "float32"}.get(trained, f"for {trained}")
                size = "" if row["megabytes"] is None else f"{row['megabytes']:.1f}"
                error = "" if form == "float32" else f"{row['error']:.2%}"
                loss = "" if row["loss"] is None else f"{row['loss']:.4f}"
                cosine, accuracy = f"{row['cosine_to_teacher']:.4f}", f"{row['phoneme_accuracy']:.1%}"
                lines.append(f"| {who} | {plain} | {form} | {size} | {error} | {loss} | {cosine} | {accuracy} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what int8 and int4 cost.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="make records that are missing: the table's, or those that are named")
    runs.add_argument("--data", required=True)
    runs.add_argument("--test", type=Path, required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--teachers", nargs="+", choices=TEACHERS, default=TEACHERS)
    runs.add_argument("--trained", nargs="+", choices=TRAINED, default=TRAINED)
    runs.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.add_parser("tables", help="write the table in docs/quantization.md")
    given = parser.parse_args()
    if given.command == "tables":
        before, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- quantization -->\n")
        after = rest.partition("<!-- end -->")[2]
        DOCS.write_text(f"{before}<!-- quantization -->\n{table()}<!-- end -->{after}", encoding="utf-8")
        return
    corpus = read_corpus(given.test)
    for teacher, trained, seed in itertools.product(given.teachers, given.trained, given.seeds):
        path = RECORDS / f"{teacher}-{trained}-{seed}.json"
        if path.exists():
            continue
        run = None if trained == "teacher" else make_student(teacher, trained, seed, given.data, given.output)
        cell = {"teacher": teacher, "trained": trained, "seed": seed, "updates": UPDATES}
        write_json(path, cell | measure(run, teacher, corpus) | {"environment": environment()})


if __name__ == "__main__":
    main()
