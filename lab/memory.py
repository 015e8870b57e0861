"""The estimate of a training step's memory against measured peaks, full-size shapes with random weights on a CPU.

    python -m lab.memory --output OUTPUT

Every case is two steps of stage 1 in a process of its own; the peak is its largest resident memory beyond what it held
before training. Cases that OUTPUT/memory.json has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CASES = [
    ("wavlm-base", 10.0, "bf16"),
    ("wavlm-base", 20.0, "bf16"),
    ("wavlm-base", 30.0, "bf16"),
    ("wavlm-base", 10.0, "float32"),
    ("hubert-base", 10.0, "bf16"),
    ("hubert-base", 10.0, "float32"),
]
STEPS = 2


class Repeated(list[Any]):
    """The same batch for every update."""

    def position(self, used: int) -> Any:
        """Where a checkpoint says that the data stands."""
        from skill_speech.data import Position

        return Position(0, used)


def measure(shape: str, batch_seconds: float, precision: Any, folder: Path) -> dict[str, Any]:
    """One case, in this process."""
    import torch
    from torch.utils.data import DataLoader

    from skill_speech.data import AudioBatch
    from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
    from skill_speech.distillation.memory import LONGEST_SECONDS, needed_bytes, saved_bytes
    from skill_speech.distillation.stage import Stage
    from skill_speech.encoder import Encoder, hubert_config, wavlm_config
    from skill_speech.profiling import peak_memory
    from skill_speech.pruning import Budget, Lagrangian, attach_gates

    large: dict[str, Any] = {"hidden_size": 1024, "num_heads": 16, "units": 4096, "depth": 24}
    large |= {"pre_norm": True, "conv_norm": "layer", "input_normalization": True}
    torch.manual_seed(0)
    options = large if shape.endswith("large") else {}
    config = (wavlm_config if shape.startswith("wavlm") else hubert_config)(**options)
    config = config.replace(hidden_dropout=0.1, attention_dropout=0.1, layer_dropout=0.0)
    teacher, student = Encoder(config), attach_gates(Encoder(config))
    stage = StageConfig(steps=STEPS, warmup_steps=1, sparsity_steps=1, batch_seconds=batch_seconds)
    loss = DistillationLoss(make_targets("dphubert", config.num_layers), config.hidden_size)
    lagrangian = Lagrangian(Budget.of(config, sparsity=0.5), 1)
    module = Distillation(teacher, student, loss, stage, lagrangian)
    estimate, saved = needed_bytes(module, batch_seconds, precision), saved_bytes(module, batch_seconds, precision)
    seconds = min(LONGEST_SECONDS, batch_seconds)
    count, samples = max(1, round(batch_seconds / seconds)), round(16_000 * seconds)
    batch = AudioBatch(0.1 * torch.randn(count, samples), torch.full((count,), samples), ("x",) * count)
    held = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    Stage(
        module,
        lambda start, rank, world_size: Repeated([batch] * (STEPS + 1)),
        None,
        lambda batches: DataLoader(batches, batch_size=None),
        folder,
        name="stage1",
        precision=precision,
        checkpoint_every=1_000,
    ).run()
    measured = peak_memory() - held
    return {
        "shape": shape,
        "batch_seconds": batch_seconds,
        "precision": precision,
        "held_gib": held / 2**30,
        "saved_activations_gib": saved / 2**30,
        "estimated_gib": estimate / 2**30,
        "measured_gib": measured / 2**30,
        "estimated_over_measured": estimate / measured,
    }


def main() -> None:
    """The command line: all cases, or one of them."""
    parser = argparse.ArgumentParser(description="Compare estimated with measured memory.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--case", type=int)
    arguments = parser.parse_args()
    if arguments.case is not None:
        shape, batch_seconds, precision = CASES[arguments.case]
        values = measure(shape, batch_seconds, precision, arguments.output / f"case{arguments.case}")
        print(json.dumps(values))
        return
    from skill_speech.environment import environment
    from skill_speech.files import write_json

    record = arguments.output / "memory.json"
    cases = json.loads(record.read_text(encoding="utf-8"))["cases"] if record.exists() else []
    done_before = {(case["shape"], case["batch_seconds"], case["precision"]) for case in cases}
    for number, case in enumerate(CASES):
        if case in done_before:
            continue
        command = [sys.executable, "-m", "lab.memory", "--output", str(arguments.output), "--case", str(number)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        cases.append(json.loads(done.stdout.splitlines()[-1]))
        print(cases[-1], flush=True)
        # A case may take all memory there is: what was measured before it stays.
        machine = environment()
        write_json(record, {"command": "python -m lab.memory --output OUTPUT", "cases": cases, "machine": machine})


if __name__ == "__main__":
    main()
