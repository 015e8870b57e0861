"""Damage files of every kind that is read, at random, and see that each is read or refused, and nothing else happens.

    python -m lab.fuzz --audio 2000 --others 500 --output OUTPUT
    python -m lab.fuzz --structured 5000 --seed 1 --output lab/results/fuzz-structured.json

The second command is lab/structured.py: inputs that are not damaged but made, by somebody who knows the formats.
A good file is damaged in one of many ways: bits, bytes and blocks changed, cut off, repeated or spliced with another;
numbers in headers set to extremes; values in JSON and YAML replaced by others of any type. Damaged checkpoints also get
hashes that fit, as somebody would write them who means harm. Each is then opened as a user would. It must be read, or
refused by one line (InputError). A file counts as a failure if anything else is raised, if it takes longer than a few
seconds or more memory than it could, if the process dies, or if Python was asked to start a program, connect, or write
outside. The good files themselves are opened first, and must be read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["skill_speech.compression", "soundfile", "soxr", "lhotse", "transformers"])

SECONDS_PER_FILE = 20
"""Of this process's own time; the slowest good file takes a hundredth."""

MEMORY_PER_FILE = 3 * 2**30
"""Bytes beyond what the process has when it starts; the files are below a megabyte."""

FILES_PER_PROCESS = 100

FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.putenv",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "pickle.find_class",
    "ctypes.dlopen",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "shutil.rmtree",
    "exec",
)
"""Audit events of Python that reading a file has no business with."""


@dataclass(frozen=True)
class Sample:
    """A good file, and how it is opened: by the name of a function in READERS."""

    name: str
    content: bytes
    reader: str


# Good files.


def audio_samples(folder: Path) -> list[Sample]:
    """One of every kind of audio."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    samples = []
    for name, rate, channels, options in (
        ("pcm16.wav", 16_000, 1, {"subtype": "PCM_16"}),
        ("pcm24.wav", 44_100, 2, {"subtype": "PCM_24"}),
        ("float.wav", 8_000, 1, {"subtype": "FLOAT"}),
        ("double.wav", 48_000, 8, {"subtype": "DOUBLE"}),
        ("ulaw.wav", 8_000, 1, {"subtype": "ULAW"}),
        ("adpcm.wav", 16_000, 1, {"subtype": "IMA_ADPCM"}),
        ("a.flac", 16_000, 1, {}),
        ("b.flac", 192_000, 2, {"subtype": "PCM_24"}),
        ("a.ogg", 16_000, 1, {}),
        ("a.opus", 48_000, 1, {"format": "OGG", "subtype": "OPUS"}),
        ("a.mp3", 44_100, 1, {}),
        ("a.aiff", 22_050, 1, {}),
        ("a.au", 16_000, 1, {}),
        ("a.caf", 16_000, 1, {}),
        ("a.w64", 16_000, 1, {}),
        ("a.sph", 16_000, 1, {"format": "NIST"}),
    ):
        path = folder / name
        soundfile.write(path, 0.1 * rng.standard_normal((rate // 8, channels)), rate, **options)
        samples.append(Sample(name, path.read_bytes(), "audio"))
    return samples


def other_samples(folder: Path) -> list[Sample]:
    """Checkpoints of every format, manifests, and the files of a run."""
    import numpy as np
    import torch
    from safetensors.torch import save

    from skill_speech import Encoder, prepare
    from skill_speech.checkpoints import save_torchaudio
    from skill_speech.distillation.checkpoints import StageState
    from skill_speech.encoder import hubert_config
    from skill_speech.similarity import LayerAnalysis, cluster_layers, save_analysis

    torch.manual_seed(0)
    config = hubert_config(hidden_size=24, num_heads=2, depth=2, units=8, channels=8, positional_groups=2)
    config = config.replace(positional_kernel=4)
    encoder = Encoder(config)
    encoder.save_pretrained(folder / "native")
    save_torchaudio(encoder, folder / "student.pth")
    torch.save(torch.load(folder / "student.pth"), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(vars(StageState(step=3, batches=3, weights=encoder.state_dict())), folder / "step=3.ckpt")
    cka_LL = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.3], [0.2, 0.3, 1.0]])
    save_analysis(folder / "analysis", LayerAnalysis(cka_LL, cluster_layers(cka_LL, 2), other_LL=cka_LL**2))
    audio = folder / "corpus"
    audio.mkdir()
    for sample in audio_samples(audio):
        if sample.name not in ("pcm16.wav", "a.flac", "pcm24.wav"):
            (audio / sample.name).unlink()
    prepare(audio, folder / "cuts.jsonl")
    (folder / "train.tsv").write_text(f"{audio}\npcm16.wav\t2000\na.flac\t2000\n")
    cuts = (folder / "cuts.jsonl").read_bytes()
    model = (folder / "native/model.safetensors").read_bytes()
    return [
        Sample("config.json", (folder / "native/config.json").read_bytes(), "native_config"),
        Sample("model.safetensors", model, "native_weights"),
        Sample("half.safetensors", save({"x": torch.ones(3).half()}), "weights"),
        Sample("student.pth", (folder / "student.pth").read_bytes(), "checkpoint"),
        Sample("legacy.pth", (folder / "legacy.pth").read_bytes(), "checkpoint"),
        Sample("step=3.ckpt", (folder / "step=3.ckpt").read_bytes(), "training_state"),
        Sample("step=3.ckpt", (folder / "step=3.ckpt").read_bytes(), "training_state_with_hash"),
        Sample("cuts.jsonl", cuts, "manifest"),
        Sample("cuts.jsonl.gz", gzip.compress(cuts), "manifest"),
        Sample("train.tsv", (folder / "train.tsv").read_bytes(), "manifest"),
        Sample("clusters.json", (folder / "analysis/clusters.json").read_bytes(), "clusters"),
        Sample("cka.npy", (folder / "analysis/cka.npy").read_bytes(), "cka"),
        Sample("cka-other.npy", (folder / "analysis/cka-other.npy").read_bytes(), "cka"),
        Sample("config.yaml", b"teacher: a/b\nclusters: 3\nstage1: {steps: 4}\nrevision: null\n", "settings"),
        Sample("status.json", b'{"stage": "stage1", "step": 3, "steps": 9, "finished": false}\n', "status"),
        Sample("metrics.csv", b"step,time,train/l1\n0,1.5,0.25\n1,2.5,0.5\n", "metrics"),
    ]


# How they are opened: READERS[name](path, folder of the good files).


def read_audio(path: Path, good: Path) -> None:
    """As a run that was given a folder: the header, everything, and a part."""
    from skill_speech.data import load_waveform, prepare

    for cut in prepare(path.parent, max_bad="100%", decode=True):
        load_waveform(cut.truncate(offset=0, duration=min(0.05, cut.duration)))


def read_manifest(path: Path, good: Path) -> None:
    """Opened, read to its end, and its audio read; and prepared again."""
    from skill_speech.data import audio_loader, evaluation_batches, open_cuts, prepare, tallied
    from skill_speech.data.tally import AudioTally

    prepare(path, max_bad="100%", absolute_paths=True)
    cuts = open_cuts(path, absolute_paths=True)
    for _ in tallied(audio_loader(evaluation_batches(cuts, batch_seconds=2)), AudioTally("100%")):
        pass


def read_native(path: Path, good: Path) -> None:
    """A folder of ours of which one file is damaged."""
    from skill_speech import load_encoder

    other = {"config.json": "model.safetensors", "model.safetensors": "config.json"}[path.name]
    shutil.copyfile(good / "native" / other, path.parent / other)
    load_encoder(path.parent)


def read_checkpoint(path: Path, good: Path) -> None:
    """A file of somebody else."""
    from skill_speech import load_encoder

    load_encoder(path)


def read_weights(path: Path, good: Path) -> None:
    """A bare state dict."""
    from skill_speech.checkpoints.weights import read_weights as read

    read(path)


def read_training_state(path: Path, good: Path, *, with_hash: bool = False) -> None:
    """A checkpoint of a stage, with the hash of the good one or with its own."""
    from skill_speech.distillation.checkpoints import CheckpointFolder, hash_of, read_state
    from skill_speech.files import sha256

    source = path if with_hash else good / "step=3.ckpt"
    hash_of(path).write_text(f"{sha256(source)}  {path.name}\n")
    step = CheckpointFolder(path.parent, every=3).newest()
    if step is not None:
        read_state(path)


def read_clusters(path: Path, good: Path) -> None:
    """An analysis of which one file is damaged."""
    from skill_speech.similarity import load_analysis

    for name in ("clusters.json", "cka.npy", "cka-other.npy"):
        if name != path.name:
            shutil.copyfile(good / "analysis" / name, path.parent / name)
    load_analysis(path.parent)


def read_settings(path: Path, good: Path) -> None:
    """The folder of a run that is to go on."""
    from skill_speech.run.folder import RunFolder

    run = RunFolder(path.parent)
    run.stated("revision", {"teacher": "a/b"})
    run.refuse_others({"teacher": "a/b", "clusters": 3, "stage1": {"steps": 4}, "revision": None}, ())


def read_status(path: Path, good: Path) -> None:
    """How far a run says it is."""
    from skill_speech.run.folder import RunFolder

    RunFolder(path.parent).status().get("finished")


def read_metrics(path: Path, good: Path) -> None:
    """What a stage had logged."""
    from skill_speech.distillation.logs import StageLog

    StageLog(path.parent, 10**9).close()


READERS: dict[str, Callable[..., None]] = {
    "audio": read_audio,
    "manifest": read_manifest,
    "native_config": read_native,
    "native_weights": read_native,
    "checkpoint": read_checkpoint,
    "weights": read_weights,
    "training_state": read_training_state,
    "training_state_with_hash": lambda path, good: read_training_state(path, good, with_hash=True),
    "clusters": read_clusters,
    "cka": read_clusters,
    "settings": read_settings,
    "status": read_status,
    "metrics": read_metrics,
}


# Damage.

EXTREMES = [0, 1, -1, 2**7, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "../../../../etc/passwd",
        "/etc/shadow",
        "\0",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin1"),
    ),
    *([], {}, [[]], [1, 2, 3], {"a": 1}, "a" * 10_000, "touch executed", "command", [None] * 100),
]


def damage(content: bytes, others: Sequence[bytes], rng: random.Random, name: str) -> bytes:
    """The content with something wrong."""
    kinds: list[Callable[[bytes], bytes]] = [
        lambda data: _flip(data, rng, 1),
        lambda data: _flip(data, rng, rng.randint(2, 64)),
        lambda data: _flip(data[:64], rng, rng.randint(1, 8)) + data[64:],
        lambda data: data[: rng.randrange(len(data) + 1)],
        lambda data: data[rng.randrange(len(data) + 1) :],
        lambda data: _extreme(data, rng, min(len(data), 128)),
        lambda data: _extreme(data, rng, len(data)),
        lambda data: _block(data, rng),
        lambda data: data + rng.randbytes(rng.randint(1, 4096)),
        lambda data: _splice(data, rng.choice(others), rng),
        lambda data: _erase(data, rng),
    ]
    if name.endswith((".json", ".jsonl", ".yaml", ".csv", ".tsv")):
        kinds += 2 * [lambda data: _text(data, rng)]
    if name.endswith((".json", ".jsonl")):
        kinds += 12 * [lambda data: _json(data, rng)]
    if name.endswith(".gz"):
        return gzip.compress(damage(gzip.decompress(content), others, rng, name.removesuffix(".gz")))
    changed = content
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        changed = rng.choice(kinds)(changed) if changed else changed
    return changed


def _flip(data: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _extreme(data: bytes, rng: random.Random, within: int) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, within - width))
    value = (rng.choice(EXTREMES) % (1 << (8 * width))).to_bytes(width, rng.choice(("little", "big")))
    return data[:place] + value + data[place + width :]


def _block(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 512)
    value = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:place] + value + data[place + length :]


def _erase(data: bytes, rng: random.Random) -> bytes:
    place, length = rng.randrange(len(data)), rng.randint(1, 256)
    return data[:place] + data[place + length :]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _text(data: bytes, rng: random.Random) -> bytes:
    words = [
        b"\t",
        b",",
        b"\n",
        b"nan",
        b"-1",
        b"1e999",
        b"{",
        b"[" * 2000,
        b"!!python/object/apply:os.system [ls]",
        b"&a *a",
    ]
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(words) + data[place:]


def _json(data: bytes, rng: random.Random) -> bytes:
    """Some values replaced, and keys removed or renamed, in one line of JSON or in all of it."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    number = rng.randrange(len(lines))
    try:
        tree = json.loads(lines[number])
    except ValueError:
        return data
    places = list(_places(tree))
    for _ in range(rng.choice((1, 1, 2, 4)) if places else 0):
        container, key = rng.choice(places)
        try:
            if rng.random() < 0.2:
                del container[key]
            else:
                container[key] = rng.choice(VALUES)
        except (KeyError, IndexError):  # removed before
            continue
    lines[number] = json.dumps(tree).encode()
    return b"\n".join(lines)


def _places(tree: Any) -> Any:
    """Every container with every key in it."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _places(value)


# Opening them, in processes that may die.


def _work(jobs: list[tuple[int, str, str, bytes]], folder: Path, good: Path, seconds: float, results: Any) -> None:
    """In a child: one file after the other; what became of each is sent at once."""
    import torch

    import skill_speech.checkpoints
    from skill_speech import InputError

    assert skill_speech.checkpoints
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    seen: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in FORBIDDEN and not harmless(event, arguments, folder):
            seen.append(f"{event} {arguments!r}"[:200])

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError

    sys.addaudithook(watch)
    signal.signal(signal.SIGVTALRM, late)
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + MEMORY_PER_FILE, resource.RLIM_INFINITY))
    for number, name, reader, content in jobs:
        results.send((number, "begun", ""))
        place = folder / str(number)
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        seen.clear()
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        watching = True
        try:
            if reader in READERS:
                READERS[reader](place / name, good)
            else:  # a line of Python, with which the harness itself is tried
                exec(reader, {})
            outcome, detail = "read", ""
        except InputError as error:
            outcome, detail = "refused", str(error)
            if "\n" in detail:
                outcome = "message of several lines"
        except TimeoutError:
            outcome, detail = "hang", ""
        except MemoryError:
            outcome, detail = "memory", ""
        except BaseException as error:
            import traceback

            outcome, detail = "crash", "".join(traceback.format_exception(error))[-3000:]
        watching = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if seen:
            outcome, detail = "forbidden", "; ".join(seen)
        results.send((number, outcome, detail))
        shutil.rmtree(place)
    results.close()


def harmless(event: str, arguments: tuple[Any, ...], folder: Path) -> bool:
    """Modules that are imported late run their code and clean up their caches; our own files are our own."""
    if event == "exec":
        name = getattr(arguments[0], "co_filename", "")
        # Of what libraries write for themselves: data classes, attrs, jsonargparse.
        made = name == "<string>" or name.startswith(("<frozen", "<attrs", "<ast>"))
        return made or name.startswith((sys.prefix, sys.base_prefix)) or "/skill_speech/" in name
    if event in ("os.mkdir", "os.remove", "os.rename", "shutil.rmtree"):
        paths = [os.path.abspath(path) for path in arguments[: 2 if event == "os.rename" else 1]]
        return all(path.startswith(str(folder)) or "__pycache__" in path for path in paths)
    if (
        event == "subprocess.Popen"
    ):  # memory and speed have a process of their own, and Python asks for its machine's name
        return arguments[1][:3] == [sys.executable, "-m", "skill_speech.profiling"] or arguments[1] == ["uname", "-p"]
    return event == "ctypes.dlopen"


def fuzz(output: Path, *, audio: int, others: int, seed: int = 0) -> dict[str, Any]:
    """Damage and open so many files.

    Args:
        output: a new folder; the files that failed are kept in it.
        audio: how many audio files.
        others: how many checkpoints, manifests and files of runs.
        seed: of the damage.

    Returns:
        counts by kind of file and outcome, and the failures.
    """
    good = output / "good"
    (good / "audio").mkdir(parents=True)
    started = time.monotonic()
    groups = [(audio_samples(good / "audio"), audio), (other_samples(good), others)]
    rng = random.Random(seed)
    jobs: list[tuple[int, str, str, bytes]] = []
    for samples, count in groups:
        contents = [sample.content for sample in samples]
        for number in range(count):
            sample = samples[number % len(samples)]
            content = damage(sample.content, contents, rng, sample.name)
            jobs.append((len(jobs), sample.name, sample.reader, content))
    everything = [sample for samples, _ in groups for sample in samples]
    sound = [(number, one.name, one.reader, one.content) for number, one in enumerate(everything)]
    for number, (outcome, detail) in in_a_process(sound, output / "work", good).items():
        if outcome != "read":
            raise RuntimeError(f"{everything[number].name} is not damaged: {outcome}: {detail}")
    outcomes: dict[int, tuple[str, str]] = {}
    left = jobs
    while left:
        outcomes |= in_a_process(left[:FILES_PER_PROCESS], output / "work", good)
        left = [job for job in left if job[0] not in outcomes]
    counts = Counter((reader, outcomes[number][0]) for number, _, reader, _ in jobs)
    failures = []
    for number, name, reader, content in jobs:
        outcome, detail = outcomes[number]
        if outcome not in ("read", "refused"):
            path = output / "failures" / f"{number}-{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            failures.append({"file": path.name, "reader": reader, "outcome": outcome, "detail": detail})
    kinds = list(dict.fromkeys(reader for _, _, reader, _ in jobs))
    return {
        "files": len(jobs),
        "audio": audio,
        "checkpoints_manifests_and_run_files": others,
        "read": sum(count for (_, outcome), count in counts.items() if outcome == "read"),
        "refused": sum(count for (_, outcome), count in counts.items() if outcome == "refused"),
        "failures": failures,
        "by_kind": {kind: {outcome: n for (k, outcome), n in counts.items() if k == kind} for kind in kinds},
        "seconds": round(time.monotonic() - started, 1),
    }


def in_a_process(
    jobs: Sequence[tuple[Any, ...]],
    folder: Path,
    good: Path,
    seconds: float = SECONDS_PER_FILE,
    work: Callable[..., None] = _work,
) -> dict[int, tuple[str, str]]:
    """What became of the files, as far as the process got; the one it died of is among them."""
    receiver, sender = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=work, args=(jobs, folder, good, seconds, sender))
    process.start()
    sender.close()
    outcomes: dict[int, tuple[str, str]] = {}
    begun = None
    try:
        while True:
            # A hang in code that is not Python's does not see the alarm.
            if not receiver.poll(10 * seconds + 60):
                process.kill()
                raise EOFError
            number, outcome, detail = receiver.recv()
            if outcome == "begun":
                begun = number
            else:
                outcomes[number], begun = (outcome, detail), None
    except EOFError:
        process.join()
    if begun is not None:
        outcomes[begun] = ("died", f"exit status {process.exitcode}")
    elif not outcomes:
        raise RuntimeError(f"the process that opens files ended with {process.exitcode} before the first one")
    shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def record(output: Path, *, audio: int, others: int, seed: int = 0) -> dict[str, Any]:
    """`fuzz`, written with where it was done to OUTPUT/fuzz.json."""
    from skill_speech.environment import environment
    from skill_speech.files import write_json

    result = fuzz(output / "files", audio=audio, others=others, seed=seed)
    command = f"python -m lab.fuzz --audio {audio} --others {others} --seed {seed}"
    write_json(output / "fuzz.json", {"command": command, **result, "machine": environment()})
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Damage files at random and see that each is read or refused.")
    parser.add_argument("--audio", type=int, default=2000)
    parser.add_argument("--others", type=int, default=500)
    parser.add_argument("--structured", type=int, metavar="N", help="N cases of lab/hostile instead; OUTPUT is a file")
    parser.add_argument("--first", type=int, default=0, help="number of the first of these cases")
    parser.add_argument("--jobs", type=int, default=1, help="how many of these cases at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    if arguments.structured is not None:
        from . import structured

        result = structured.record(
            arguments.output,
            count=arguments.structured,
            seed=arguments.seed,
            first=arguments.first,
            jobs=arguments.jobs,
        )
        print(structured.table(result))
        return
    record(arguments.output, audio=arguments.audio, others=arguments.others, seed=arguments.seed)
    print((arguments.output / "fuzz.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
