"""What compressing a full-size teacher costs at 960, 10,000 and 100,000 hours: a model, and what it is checked by.

    python -m lab.scaling measure     # steps of full-size models here, in CPU time → lab/results/scaling-measured.json
    python -m lab.scaling tables      # the model → lab/results/scaling.json, and the tables of docs/scaling*.md

Two kinds of numbers go in. Measured here, on a CPU: the share of a step that each model takes, what is kept for the way
back, decoding, the stream of cuts. Assumed, and said so: what accelerators, networks and storage do and cost.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from skill_speech.compression import STAGE1, STAGE2
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.encoder import Encoder, EncoderConfig, hubert_config, wavlm_config
from skill_speech.environment import environment
from skill_speech.files import write_json
from skill_speech.pruning import Budget, Lagrangian, Widths, attach_gates, count_parameters, fix_gates, prune
from skill_speech.pruning.size import macs_by_component

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
DOCUMENTS = {
    "scaling.md": ("manifests",),
    "scaling-costs.md": ("costs", "reading", "memory", "checked", "limits", "lengths"),
}
"""Page → its tables."""
RECIPES = Path(__file__).parent.parent / "recipes"
MANIFESTS = Path(__file__).parent.parent / "benchmarks" / "results" / "manifests.json"

LARGE: dict[str, Any] = {"hidden_size": 1024, "num_heads": 16, "units": 4096, "depth": 24, "pre_norm": True}
LARGE |= {"conv_norm": "layer", "input_normalization": True}
TEACHERS: dict[str, Callable[[], EncoderConfig]] = {
    "wavlm-base-plus": wavlm_config,
    "hubert-base": hubert_config,
    "wavlm-large": lambda: wavlm_config(**LARGE),
    "hubert-large": lambda: hubert_config(**LARGE, conv_bias=True),
}
HOURS = (960, 10_000, 100_000)
KEPT = 0.25
UTTERANCE_SECONDS = 13.0
MEASURED_SECONDS = 4.0

ASSUMED: dict[str, Any] = {
    "accelerators": {
        "A100": {"peak_tflops": 312, "dollars_per_hour": [1.0, 2.5], "memory_gb": 80},
        "H100": {"peak_tflops": 989, "dollars_per_hour": [2.0, 4.5], "memory_gb": 80},
    },
    "utilisation": [0.15, 0.35],
    "flac_bytes_per_second": 17_500,
    "storage_dollars_per_gb_month": [0.015, 0.03],
    "requests_dollars_per_million": 0.4,
    "network_gb_per_second": {"NVLink": 300.0, "100 Gb/s": 12.5},
}
"""Peak: dense bf16 as the vendor states it. Utilisation: the share of it that a training step of such a model reaches;
nobody has measured it for this code. Prices: list prices of several clouds, per device, on demand and reserved. FLAC:
LibriSpeech's 960 h are about 60 GB. All of these are for the reader to replace."""


def student_widths(teacher: EncoderConfig) -> Widths:
    """Widths with a quarter of the parameters where everything prunable keeps the same share."""
    whole, low, high = Widths.of(teacher), 0.0, 1.0
    size = float(count_parameters(teacher, whole))
    for _ in range(60):
        share = (low + high) / 2
        widths = Widths(
            channels=[share * channels for channels in whole.channels],
            heads=[share * heads for heads in whole.heads],
            attends=whole.attends,
            units=[share * units for units in whole.units],
        )
        low, high = (share, high) if float(count_parameters(teacher, widths)) < KEPT * size else (low, share)
    return widths


def macs(config: EncoderConfig, widths: Widths, seconds: float = UTTERANCE_SECONDS) -> float:
    """Multiply-accumulates per second of audio."""
    return float(sum(macs_by_component(config, widths, seconds).values()))


def forward_equivalents(share: float) -> dict[str, float]:
    """MACs of a step in forward passes of the teacher: one of the teacher, three (there and back) of the student."""
    return {"stage1": 1 + 3, "stage2": 1 + 3 * share}


# Measuring


def cpu_seconds(work: Callable[[], object], repeats: int = 2) -> float:
    """The least CPU time of several calls, behind one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def saved_bytes(work: Callable[[], object]) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass, weights apart."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and tensor.grad_fn is not None:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept.append(work())
    return sum(seen.values())


def measure_teacher(name: str, seconds: float) -> dict[str, Any]:
    """CPU seconds per second of audio: the teacher alone, a batch of stage 1, a batch of stage 2, with their model."""
    config = TEACHERS[name]()
    torch.manual_seed(0)
    teacher = Encoder(config).eval()
    whole = Widths.of(config)
    targets = make_targets("dphubert", config.num_layers)
    waveforms_BT = torch.randn(1, int(16_000 * seconds)) * 0.1

    def module(student: Encoder, stage: StageConfig, lagrangian: Lagrangian | None) -> Distillation:
        made = Distillation(teacher, student, DistillationLoss(targets, config.hidden_size), stage, lagrangian).train()
        teacher.eval()
        return made

    def step(made: Distillation) -> None:
        made(waveforms_BT, step=0)[0].backward()
        made.zero_grad()

    def forward() -> None:
        with torch.no_grad():
            teacher(waveforms_BT)

    student = Encoder(config)
    student.load_state_dict(teacher.state_dict())
    budget = Budget.of(config, sparsity=1 - KEPT)
    gated = module(attach_gates(student), STAGE1, Lagrangian(budget, 1))
    timed = {"forward": cpu_seconds(forward), "stage1": cpu_seconds(lambda: step(gated))}
    kept = {"stage1": saved_bytes(lambda: gated(waveforms_BT, step=0)[0])}
    fix_gates(student, budget, missed="cut")
    pruned = prune(student)
    widths = Widths.of(pruned.config)
    share = macs(pruned.config, widths, seconds) / macs(config, whole, seconds)
    small = module(pruned, STAGE2, None)
    timed["stage2"] = cpu_seconds(lambda: step(small))
    kept["stage2"] = saved_bytes(lambda: small(waveforms_BT, step=0)[0])
    predicted = forward_equivalents(share)
    return {
        "teacher": name,
        "parameters": teacher.num_parameters(),
        "utterance_seconds": seconds,
        "cpu_seconds_per_second": {stage: value / seconds for stage, value in timed.items()},
        "gmacs_per_second": macs(config, whole, seconds) / 1e9,
        "student_parameters": pruned.num_parameters(),
        "student_share_of_macs": share,
        "in_forward_passes": {stage: timed[stage] / timed["forward"] for stage in predicted},
        "in_forward_passes_predicted": predicted,
        "saved_mb_per_second_float32": {stage: value / seconds / 1e6 for stage, value in kept.items()},
    }


def measure_audio() -> dict[str, float]:
    """Seconds of audio per CPU second: decoding FLAC, and writing shards."""
    rng = np.random.default_rng(0)
    samples_T = (np.cumsum(rng.standard_normal(16_000 * 13)) * 20).clip(-30_000, 30_000).astype(np.int16)
    stream = io.BytesIO()
    soundfile.write(stream, samples_T, 16_000, format="FLAC", subtype="PCM_16")
    data = stream.getvalue()

    def decode() -> None:
        for _ in range(20):
            soundfile.read(io.BytesIO(data), dtype="float32")

    def encode() -> None:
        for _ in range(5):
            soundfile.write(io.BytesIO(), samples_T, 16_000, format="FLAC", subtype="PCM_16")

    return {"decoded": 20 * 13 / cpu_seconds(decode), "encoded": 5 * 13 / cpu_seconds(encode)}


def measure(names: list[str], seconds: float) -> None:
    """Measure, and write lab/results/scaling-measured.json."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "what": "single steps of full-size models with random weights, float32, one thread, CPU time, best of several",
        "command": f"python -m lab.scaling measure --seconds {seconds:g} --teachers {' '.join(names)}",
        "seed": 0,
        "environment": environment(),
        "audio_seconds_per_cpu_second": measure_audio(),
        "teachers": [],
    }
    for name in names:
        record["teachers"].append(measure_teacher(name, seconds))
        write_json(RESULTS / "scaling-measured.json", record)


# The model


def schedule(name: str) -> dict[str, StageConfig]:
    """Both stages of a teacher's recipe."""
    values = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return {stage: StageConfig(**values[stage]) for stage in ("stage1", "stage2")}


def trained_seconds(stages: dict[str, StageConfig]) -> dict[str, float]:
    """Seconds of audio that go through each stage."""
    return {name: stage.steps * stage.accumulate * stage.batch_seconds for name, stage in stages.items()}


def cost(name: str, hours: float, measured: dict[str, Any], stretched: bool) -> dict[str, Any]:
    """One cell of the table.

    Args:
        name: of the teacher.
        hours: of the data.
        measured: what `measure` wrote.
        stretched: so many updates that all of the data is seen once, where the recipe's are too few for that.
    """
    config = TEACHERS[name]()
    whole, small = Widths.of(config), student_widths(config)
    share = macs(config, small) / macs(config, whole)
    stages = schedule(name)
    audio = trained_seconds(stages)
    factor = max(1.0, hours * 3600 / sum(audio.values())) if stretched else 1.0
    flops = {
        stage: factor * audio[stage] * 2 * macs(config, whole) * passes
        for stage, passes in forward_equivalents(share).items()
    }
    prices = {}
    for device, values in ASSUMED["accelerators"].items():
        spent = [sum(flops.values()) / (values["peak_tflops"] * 1e12 * part) / 3600 for part in ASSUMED["utilisation"]]
        low, high = min(spent), max(spent)
        dollars = [low * values["dollars_per_hour"][0], high * values["dollars_per_hour"][1]]
        prices[device] = {"hours": [low, high], "dollars": dollars}
    stored = hours * 3600 * ASSUMED["flac_bytes_per_second"]
    seen = factor * sum(audio.values())
    return {
        "teacher": name,
        "hours": hours,
        "schedule": "stretched" if stretched else "published",
        "updates": round(factor * sum(stage.steps for stage in stages.values())),
        "epochs": seen / 3600 / hours,
        "exaflop": sum(flops.values()) / 1e18,
        "student_share_of_macs": share,
        "accelerators": prices,
        "storage_gb": stored / 1e9,
        "storage_dollars_per_month": [stored / 1e9 * price for price in ASSUMED["storage_dollars_per_gb_month"]],
        "read_gb": seen * ASSUMED["flac_bytes_per_second"] / 1e9,
        "requests_dollars": seen / UTTERANCE_SECONDS * ASSUMED["requests_dollars_per_million"] / 1e6,
        "shard_cpu_hours": hours
        * (
            1 / measured["audio_seconds_per_cpu_second"]["decoded"]
            + 1 / measured["audio_seconds_per_cpu_second"]["encoded"]
        ),
    }


def memory(name: str, measured: dict[str, Any]) -> dict[str, float]:
    """GB on one device in stage 1, where it is largest, with a recipe's batch."""
    row = next((row for row in measured["teachers"] if row["teacher"] == name), None)
    if row is None:
        return {}
    parameters, batch = row["parameters"], schedule(name)["stage1"].batch_seconds
    return {
        "teacher": 4 * parameters / 1e9,
        "student_and_optimiser": 16 * parameters / 1e9,
        # Half of float32's: under autocast matrix products keep bf16, but norms and losses float32. At most twice this.
        "activations": row["saved_mb_per_second_float32"]["stage1"] * batch / 2 / 1e3,
        "batch_seconds": batch,
    }


def limits(name: str, measured: dict[str, Any], streamed: dict[str, Any]) -> dict[str, Any]:
    """Where more devices stop helping, per kind of device, at the upper end of the assumed utilisation."""
    config, stage = TEACHERS[name](), schedule(name)["stage1"]
    size = float(count_parameters(config, Widths.of(config)))
    work = 2 * macs(config, Widths.of(config)) * forward_equivalents(1.0)["stage1"]
    cut = streamed["cpu_microseconds_per_cut"] / 1e6
    found = {}
    for device, values in ASSUMED["accelerators"].items():
        speed = values["peak_tflops"] * 1e12 * max(ASSUMED["utilisation"]) / work
        step = stage.batch_seconds / speed
        found[device] = {
            "audio_seconds_per_second": speed,
            "step_seconds": step,
            "decoding_cores": speed / measured["audio_seconds_per_cpu_second"]["decoded"],
            "read_mb_per_second": speed * ASSUMED["flac_bytes_per_second"] / 1e6,
            # Gradients in float32; a ring sends each of them twice.
            "gradient_seconds": {
                link: 2 * 4 * size / 1e9 / rate for link, rate in ASSUMED["network_gb_per_second"].items()
            },
            "devices_of_one_update": stage.accumulate,
            "devices_of_the_stream": UTTERANCE_SECONDS / cut / speed,
        }
    return found


def build() -> dict[str, Any]:
    """Everything that docs/scaling-costs.md states, from the recipes, the assumptions and the measurements."""
    measured = json.loads((RESULTS / "scaling-measured.json").read_text(encoding="utf-8"))
    manifests = json.loads(MANIFESTS.read_text(encoding="utf-8"))
    largest = max((row for row in manifests["rows"] if row["kind"] == "shards"), key=lambda row: row["cuts"])
    rows = [
        cost(name, hours, measured, stretched)
        for name in TEACHERS
        for hours in HOURS
        for stretched in (False, True)
        if not stretched or hours * 3600 > sum(trained_seconds(schedule(name)).values())
    ]
    short, long = (macs(wavlm_config(), Widths.of(wavlm_config()), seconds) for seconds in (3.0, 15.6))
    return {
        "what": "a cost model: nothing in it was measured on an accelerator",
        "command": "python -m lab.scaling tables",
        "assumed": ASSUMED,
        "measured": ["lab/results/scaling-measured.json", "benchmarks/results/manifests.json"],
        "macs_of_short_utterances": short / long,
        "costs": rows,
        "memory_gb": {name: found for name in TEACHERS if (found := memory(name, measured))},
        "limits": {name: limits(name, measured, largest) for name in ("wavlm-base-plus", "wavlm-large")},
    }


def tables(model: dict[str, Any]) -> dict[str, str]:
    """The tables of the documents in Markdown, by name."""
    measured = json.loads((RESULTS / "scaling-measured.json").read_text(encoding="utf-8"))
    manifests = json.loads(MANIFESTS.read_text(encoding="utf-8"))
    return {
        "costs": _table(
            [
                "teacher",
                "data",
                "updates",
                "epochs",
                "EFLOP",
                "A100 hours",
                "H100 hours",
                "$ (H100)",
                "FLAC",
                "$ a month",
            ],
            [
                [
                    row["teacher"],
                    f"{row['hours']:,} h",
                    f"{row['updates'] / 1000:,.0f}k" + (" (one epoch)" if row["schedule"] == "stretched" else ""),
                    f"{row['epochs']:.2g}",
                    f"{row['exaflop']:.3g}",
                    _range(row["accelerators"]["A100"]["hours"]),
                    _range(row["accelerators"]["H100"]["hours"]),
                    _range(row["accelerators"]["H100"]["dollars"]),
                    f"{row['storage_gb'] / 1000:.2g} TB",
                    _range(row["storage_dollars_per_month"]),
                ]
                for row in model["costs"]
            ],
        ),
        "reading": _reading(model["costs"]),
        "lengths": (
            f"A second of an utterance of 3 s takes {model['macs_of_short_utterances']:.0%} of the multiply-"
            "accumulates of a second of one of 15.6 s (WavLM Base+)."
        ),
        "memory": _table(
            [
                "teacher",
                "batch",
                "teacher's weights",
                "student, gradients, AdamW",
                "activations for the backward pass",
                "sum",
            ],
            [
                [
                    name,
                    f"{row['batch_seconds']:g} s",
                    *(f"{row[key]:.1f} GB" for key in ("teacher", "student_and_optimiser", "activations")),
                    f"{row['teacher'] + row['student_and_optimiser'] + row['activations']:.0f} GB",
                ]
                for name, row in model["memory_gb"].items()
            ],
        ),
        "limits": _table(
            [
                "teacher, device",
                "a batch takes",
                "gradients take: NVLink",
                "100 Gb/s",
                "cores to decode",
                "reads",
                "devices the stream feeds",
            ],
            [
                [
                    f"{name}, {device}",
                    f"{row['step_seconds'] * 1000:.0f} ms",
                    *(f"{seconds * 1000:.0f} ms" for seconds in row["gradient_seconds"].values()),
                    f"{row['decoding_cores']:.1f}",
                    f"{row['read_mb_per_second']:.0f} MB/s",
                    f"{row['devices_of_the_stream']:.0f}",
                ]
                for name, devices in model["limits"].items()
                for device, row in devices.items()
            ],
        ),
        "checked": _table(
            ["teacher", "stage", "measured", "model", "measured / model"],
            [
                [
                    row["teacher"],
                    stage,
                    f"{row['in_forward_passes'][stage]:.2f}",
                    f"{predicted:.2f}",
                    f"{row['in_forward_passes'][stage] / predicted:.2f}",
                ]
                for row in measured["teachers"]
                for stage, predicted in row["in_forward_passes_predicted"].items()
            ],
        ),
        "manifests": _table(
            [
                "data",
                "cuts",
                "first batch",
                "of it CPU",
                "memory until then",
                "memory after 50,000 more",
                "CPU per cut",
            ],
            [
                [
                    row["kind"],
                    f"{row['cuts']:,}",
                    f"{row['first_batch_seconds']:.1f} s",
                    f"{row['first_batch_cpu_seconds']:.1f} s",
                    f"{row['first_batch_mib']:.0f} MiB",
                    f"{row['peak_mib']:.0f} MiB",
                    f"{row['cpu_microseconds_per_cut']:.0f} µs",
                ]
                for row in manifests["rows"]
            ],
        ),
    }


def _reading(costs: list[dict[str, Any]]) -> str:
    published, last = next(row for row in costs if row["schedule"] == "published"), costs[-1]
    seen = published["epochs"] * published["hours"]
    requests = published["requests_dollars"]
    return (
        f"The published number of updates sees {seen:,.0f} h of audio, however much there is: "
        f"{published['epochs']:.0f} epochs of LibriSpeech. The rows of one epoch have as many updates as it takes to "
        "go through larger data once. More data costs nothing but its storage until one wants more updates. Reading "
        f"is small beside it: {published['read_gb']:,.0f} GB in all, and ${requests:.1f} for an object store's "
        f"requests. Writing shards takes {last['shard_cpu_hours']:,.0f} CPU hours for {last['hours']:,} h."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _range(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in values)
    return low if low == high else f"{low}–{high}"


def insert(text: str, found: dict[str, str]) -> str:
    """A document with its tables renewed, each between <!-- NAME --> and <!-- end -->."""
    for name, table in found.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"no place for the table {name}")
        text = f"{before}{mark}\n{table}\n\n{end}{after}"
    return text


def documents(model: dict[str, Any]) -> dict[Path, str]:
    """The documents as they are with the tables of a model."""
    found = tables(model)
    return {
        DOCS / page: insert((DOCS / page).read_text(encoding="utf-8"), {name: found[name] for name in names})
        for page, names in DOCUMENTS.items()
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What compressing costs.")
    parser.add_argument("what", choices=["measure", "tables"])
    parser.add_argument("--teachers", nargs="+", default=["wavlm-base-plus", "wavlm-large"], choices=sorted(TEACHERS))
    parser.add_argument("--seconds", type=float, default=MEASURED_SECONDS)
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.teachers, arguments.seconds)
        return
    model = build()
    write_json(RESULTS / "scaling.json", model)
    for page, text in documents(model).items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
