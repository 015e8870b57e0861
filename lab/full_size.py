"""Full-size teachers with random weights through the whole recipe: sizes, memory and speed, nothing about quality.

    python -m lab.full_size --shape wavlm-base-plus --output runs/full-size

The teacher is Transformers' own model, saved as Transformers saves it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lab.speech import make_speech
from skill_speech import compress
from skill_speech.compression import AnalysisConfig, CompressionResult
from skill_speech.distillation import StageConfig
from skill_speech.files import write_json

LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
}
SHAPES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wavlm-base-plus": ("WavLM", {}, False),
    "hubert-base": ("Hubert", {}, False),
    "wavlm-large": ("WavLM", LARGE, True),
    "hubert-large": ("Hubert", LARGE | {"conv_bias": True}, True),
}


def make_teacher(shape: str, folder: Path) -> Path:
    """Transformers' model of that shape with random weights, and its preprocessor."""
    import transformers

    kind, options, normalize = SHAPES[shape]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options))
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return folder


def run(
    shape: str, output: Path, *, steps: int = 4, batch_seconds: float = 20.0, calibration_seconds: float = 30.0
) -> CompressionResult:
    """A few steps of every stage to a quarter of the parameters; writes OUTPUT/SHAPE.json beside the run."""
    teacher = make_teacher(shape, output / "teacher")
    speech = make_speech(output / "speech", hours=0.06, seed=5, jobs=1)
    stage = StageConfig(steps=steps, warmup_steps=1, sparsity_steps=1, batch_seconds=batch_seconds)
    result = compress(
        str(teacher),
        str(speech),
        str(output / shape),
        analysis=AnalysisConfig(calibration_seconds=calibration_seconds, batch_seconds=15, batch_frames=256),
        stage1=stage,
        stage2=stage,
        validation_seconds=0.0,
    )
    outcome = json.loads((output / shape / "result.json").read_text(encoding="utf-8"))
    stages = {
        name: {
            "audio_seconds_per_second": values["audio_seconds"] / values["seconds"],
            "peak_memory_gib": values["peak_memory"] / 2**30,
        }
        for name, values in outcome["stages"].items()
    }
    record = {
        "shape": shape,
        "command": f"python -m lab.full_size --shape {shape} --output OUTPUT",
        "machine": outcome["environment"],
        "steps": steps,
        "batch_seconds": batch_seconds,
        "teacher_parameters": result.teacher.total_parameters,
        "student_parameters": result.student.total_parameters,
        "teacher_real_time_factor": result.teacher.real_time_factor,
        "student_real_time_factor": result.student.real_time_factor,
        "stages": stages,
    }
    write_json(output / f"{shape}.json", record)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a full-size random teacher through the recipe.")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="wavlm-base-plus")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    run(arguments.shape, arguments.output, steps=arguments.steps, batch_seconds=arguments.batch_seconds)
    print((arguments.output / f"{arguments.shape}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
