"""What a profile says of memory and size."""

from __future__ import annotations

import itertools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from skill_speech import Encoder, optimize, profile
from skill_speech.encoder import hubert_config, wavlm_config
from skill_speech.errors import InputError
from skill_speech.profiling import REST, measure, peak_memory, time_components
from skill_speech.reporting.runtimes import read_runtimes, runtime_rows, runtime_text
from skill_speech.reporting.scores import update_card
from skill_speech.timing import read_times

ALONE = "from skill_speech.profiling import peak_memory; print(peak_memory())"


def test_peak_memory_is_the_processs_own_and_not_what_its_parent_had() -> None:
    ballast = np.ones(40_000_000)  # 320 MB
    child = int(subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout)
    assert peak_memory() >= ballast.nbytes
    assert child < ballast.nbytes


def test_a_profile_counts_what_is_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small, large = (
        Encoder(hubert_config(hidden_size=64, num_heads=4, units=units, channels=32, depth=2, positional_kernel=8))
        for units in (100, 40_000)
    )
    small.save_pretrained(tmp_path / "small")
    large.save_pretrained(tmp_path / "large")
    one, other = profile(
        str(tmp_path / "small"), str(tmp_path / "large"), seconds=1, threads=1, times=str(tmp_path / "t.json")
    )
    assert (one.total_parameters, other.total_parameters) == (small.num_parameters(), large.num_parameters())
    assert one.threads == 1
    assert read_times(tmp_path / "t.json", small.config).utterance == 1
    assert one.timings[0].precision == "float32"
    assert one.memory is not None
    assert other.memory is not None
    assert other.memory - one.memory > 4 * (other.total_parameters - one.total_parameters) / 2


def test_components_share_the_time_of_a_pass_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that says one second more whenever it is looked at, every call of a part takes one second."""
    torch.manual_seed(0)
    config = wavlm_config(hidden_size=64, num_heads=4, units=32, channels=16, depth=3, positional_kernel=8)
    encoder = Encoder(config)
    measured = measure(encoder, "model", seconds=2, repeats=1)
    monkeypatch.setattr("skill_speech.profiling.measuring.time.perf_counter", itertools.count().__next__)
    timing = time_components(optimize(encoder, "float32"), torch.randn(1, 32_000), repeats=1)
    parts = {"front end": 2, "positional convolution": 1, "attention": 1 + 3, "feed-forward": 3}
    # Ten calls of parts with two looks each, and one look more at the end.
    assert timing.seconds == parts | {REST: 21 - 10}
    assert timing.total_seconds == 21
    assert measured.share_of_peak(timing) == pytest.approx(4 * measured.total_macs / 21 / timing.matrix_rate)
    assert measured.share_of_peak(timing, "attention") == pytest.approx(
        4 * measured.macs["attention"] / 4 / timing.matrix_rate
    )
    assert measured.share_of_peak(timing, REST) is None


@pytest.mark.slow
def test_every_runtime_that_is_installed_is_measured(tmp_path: Path) -> None:
    """And each of them computes what the encoder does; of a run, the report and the model card show it."""
    torch.manual_seed(0)
    config = wavlm_config(hidden_size=64, num_heads=4, units=32, channels=16, depth=1, positional_kernel=8)
    run = tmp_path / "run"
    Encoder(config).save_pretrained(run / "model")
    (run / "config.yaml").touch()
    (made,) = profile(str(run / "model"), seconds=1, threads=1, runtimes=True)
    names = [cost.name for cost in made.runtimes]
    assert names[:2] == ["encoder", "optimize float32"]
    assert ("onnxruntime float32" in names) == (find_spec("onnxruntime") is not None)
    assert ("openvino float32" in names) == (find_spec("openvino") is not None)
    for cost in made.runtimes:
        assert cost.difference < (1e-4 if cost.name.endswith(" float32") or cost.name == "encoder" else 0.1)
        assert cost.memory > 0
    assert made.runtimes[0].difference == 0
    values = read_runtimes(run)
    assert values is not None
    assert [one["name"] for one in values["runtimes"]] == names
    (run / "model" / "README.md").write_text("# run\n\n## Size and speed\n\nsmall\n\n## Limits\n\nnone\n")
    update_card(run)
    card = (run / "model" / "README.md").read_text()
    assert card.index("## Size and speed") < card.index("## Runtimes") < card.index("## Limits")
    assert "| optimize float32 | 2" in card


def test_damaged_runtimes_are_named(tmp_path: Path) -> None:
    (tmp_path / "runtimes.json").write_text(
        '{"seconds": 1, "machine": {"processor": "a", "threads": 1}, "runtimes": [1]}'
    )
    with pytest.raises(InputError, match=r"runtimes\.json: damaged \(runtimes\[0\] is not an object\); delete it"):
        read_runtimes(tmp_path)


def test_costs_in_runtimes_become_a_table() -> None:
    cost = {"name": "encoder", "version": "2", "real_time_factor": 0.1, "memory": 2**20, "difference": 0.0}
    fast = cost | {"name": "a|b", "real_time_factor": 0.04, "difference": 1e-6}
    values = {"seconds": 1.0, "machine": {"processor": "a CPU", "threads": 2}, "runtimes": [cost, fast]}
    assert runtime_rows(values)[1] == ["a|b", "2", "0.0400", "2.5×", "1 MiB", "1.0e-06"]
    text = runtime_text(values)
    assert text.startswith("| runtime | version |")
    assert "| a\\|b | 2 |" in text
    assert "one utterance of 1 s, 2 threads of a CPU" in text
