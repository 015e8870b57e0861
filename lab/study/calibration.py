"""How much audio do the layer clusters need? Analyses of growing samples against one of all the audio there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from lab.study.grid import Study
from skill_speech import analyze
from skill_speech.compression import AnalysisConfig
from skill_speech.data import Part
from skill_speech.environment import environment
from skill_speech.files import write_json
from skill_speech.similarity import load_analysis


def compare_samples(study: Study, output: Path) -> dict[str, Any]:
    """For every teacher: how the similarities and the clusters of small samples differ from those of a large one.

    Writes OUTPUT/records/calibration.json. Agreement of clusters is the adjusted Rand index: 1 for the same clusters, 0
    for what chance would give.
    """
    options = study.calibration
    speech = study.speech_in(output)
    teachers: dict[str, Any] = {}
    for name, source in study.teachers.items():

        def look(seconds: float, seed: int, name: str = name, source: str = source) -> tuple[Any, dict[int, int]]:
            folder = output / "calibration" / f"{name}-{seconds:g}s-seed{seed}"
            found = analyze(
                source,
                speech if isinstance(speech, str) else [Part(**part) for part in speech],
                str(folder),
                clusters=options["clusters"],
                analysis=AnalysisConfig(calibration_seconds=seconds),
                seed=seed,
            )
            labels = {layer: number for number, group in enumerate(found.groups) for layer in group}
            return load_analysis(folder / "analysis").cka_LL, labels

        cka_LL, groups = look(options["reference_seconds"], 1000)
        layers = sorted(groups)
        off = ~np.eye(len(layers), dtype=bool)
        rows = []
        for seconds in options["seconds"]:
            for seed in options["seeds"]:
                sample_LL, labels = look(seconds, seed)
                rows.append(
                    {
                        "seconds": seconds,
                        "seed": seed,
                        "largest_difference": float(np.abs(sample_LL - cka_LL)[off].max()),
                        "mean_difference": float(np.abs(sample_LL - cka_LL)[off].mean()),
                        "agreement": float(
                            adjusted_rand_score(
                                [groups[layer] for layer in layers], [labels[layer] for layer in layers]
                            )
                        ),
                    }
                )
        teachers[name] = {
            "cka": np.round(cka_LL, 5).tolist(),
            "clusters": [
                [layer for layer in layers if groups[layer] == number] for number in sorted({*groups.values()})
            ],
            "samples": rows,
        }
    record = {"kind": "calibration", "options": options, "teachers": teachers, "environment": environment()}
    write_json(output / "records" / "calibration.json", record)
    return record
