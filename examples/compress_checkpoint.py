"""Compress a checkpoint of your own from Python, and export the student to ONNX.

    python examples/compress_checkpoint.py microsoft/wavlm-base-plus FOLDER_OF_AUDIO --output runs/mine --steps 5000

Run it again to resume. Without a network or a GPU, try it with a bundled teacher: lab/teachers/hubert-mini.
"""

import argparse
from pathlib import Path

from skill_speech import compress, export, load_encoder
from skill_speech.compression import Stage1Config, Stage2Config

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("teacher", help="hub ID, folder or file")
parser.add_argument("data", help="folder of audio, or any form that `prepare` accepts")
parser.add_argument("--output", default="runs/mine", help="folder of the run (default: %(default)s)")
parser.add_argument("--steps", type=int, default=50_000, help="updates of stage 1; stage 2 has half as many")
parser.add_argument("--batch_seconds", type=float, default=160, help="audio per update (default: %(default)g)")
arguments = parser.parse_args()


def show(stage) -> None:
    """Called after every update."""
    if stage.state.step % 100 == 0:
        print(stage.name, stage.state.step)


def main() -> None:
    """Compress, compare and export."""
    result = compress(
        arguments.teacher,
        arguments.data,
        arguments.output,
        params=0.25,  # a quarter of the parameters …
        macs=0.35,  # … and about a third of the work: with parameters alone, the slow convolutions stay
        # `minutes=60` in place of numbers of updates makes the run that long on this machine.
        stage1=Stage1Config(steps=arguments.steps, batch_seconds=arguments.batch_seconds),
        stage2=Stage2Config(steps=arguments.steps // 2, batch_seconds=arguments.batch_seconds),
        on_step=show,
    )
    teacher, student = result.teacher, result.student  # what each of them costs
    print(f"parameters: {teacher.total_parameters:,} → {student.total_parameters:,}")

    # The student is loaded like any other model; each layer has its own widths.
    encoder = load_encoder(result.folder / "model")
    print("attention heads per layer:", [len(layer.heads) for layer in encoder.config.layers])

    folder = Path(arguments.output) / "onnx"
    if not folder.exists():
        made = export(str(result.folder / "model"), str(folder), format="onnx", hidden_states="last")
        print(f"{made.folder}: {made.size / 1e6:.1f} MB; {made.folder}/README.md says how to run it")


if __name__ == "__main__":
    main()
