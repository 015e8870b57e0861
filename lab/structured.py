"""Run the command line on the hostile inputs of lab/hostile, each in a process of its own, and see how it ends.

    python -m lab.fuzz --structured 5000 --seed 1 --output lab/results/fuzz-structured.json

A process that has imported everything divides itself once per case. A case passes if the command ends with 0, or with 2
and one line that says why; what it writes to a terminal is printable and short; it takes less than a gigabyte and a few
seconds of its own; it reads nothing from standard input, starts nothing, connects to nothing, writes nowhere else, and
no code of the input has left its mark. What may take as long as it is asked to also passes if it ends with 143 when it
is told to stop.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from .fuzz import FORBIDDEN, harmless, in_a_process
from .hostile import CANARY, GOOD, KINDS, Case, kind_of, make_case, make_good

RECORD = Path(__file__).parent / "results" / "fuzz-structured.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "robustness.md"

MOST_MEMORY = 2**30
"""Bytes beyond what the process has when it is divided."""

MOST_ADDRESSES = 6 * 2**30
"""Bytes of address space beyond that, so that what goes wrong does not take the machine along."""

MOST_CHARACTERS = 2_200
"""Of a line."""

SECONDS_TO_STOP = 20
WALL_FACTOR = 15
"""A process may wait for others on a busy machine, but not so much longer than it computes."""

CASES_PER_PROCESS = 100
REASON = re.compile(r"'[^']*'|\d+|: .*?: ")
"""What differs between two refusals for one reason: values, numbers, and the place."""

PASSED = ("done", "refused", "stopped")


def structured(output: Path, *, count: int, seed: int = 0, first: int = 0, jobs: int = 1) -> dict[str, Any]:
    """Try so many cases; those that have passed before, by what `output` says, are not tried again.

    Args:
        output: a folder; the inputs of cases that failed are kept in it, and how each case ended.
        count: how many cases.
        seed: of the cases.
        first: the number of the first one.
        jobs: how many at a time.

    Returns:
        counts by kind and outcome, and the failures.
    """
    good, started = output / "good", time.monotonic()
    for old in (good, *output.glob("work*"), output / "failures"):
        shutil.rmtree(old, ignore_errors=True)
    good.mkdir(parents=True)
    make_good(good)
    end, ended = first + count, output / f"ended-{seed}.jsonl"
    outcomes = _passed_before(ended, range(first, end))

    def some(numbers: range) -> None:
        while left := [(number, seed) for number in numbers if number not in outcomes]:
            new = in_a_process(left, output / f"work{numbers.start}", good, work=work)
            outcomes.update(new)
            with ended.open("a") as file:
                file.write("".join(f"{json.dumps([number, *outcome])}\n" for number, outcome in new.items()))
            for number, (how, detail) in new.items():
                if how not in PASSED:
                    print(f"case {number} ({kind_of(number)}): {how}: {detail!a}", flush=True)
        print(f"{len(outcomes)} of {count}", flush=True)

    parts = [range(begin, min(begin + CASES_PER_PROCESS, end)) for begin in range(first, end, CASES_PER_PROCESS)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(some, parts))
    failures = []
    for number, (outcome, detail) in sorted(outcomes.items()):
        if outcome not in PASSED:
            case = make_case(good, seed, number)
            write(case, output / "failures" / str(number), good)
            command = " ".join(case.arguments)[:300]
            failures.append(
                {"case": number, "kind": case.kind, "command": command, "outcome": outcome, "detail": detail}
            )
    reasons = Counter(
        (kind_of(number), REASON.sub("…", detail)) for number, (how, detail) in outcomes.items() if how == "refused"
    )
    counts = Counter((kind_of(number), outcome) for number, (outcome, _) in outcomes.items())
    by_kind = {kind: {how: n for (of, how), n in sorted(counts.items()) if of == kind} for kind in KINDS}
    return {
        "cases": count,
        "seed": seed,
        "first": first,
        **{how: sum(n for (_, outcome), n in counts.items() if outcome == how) for how in PASSED},
        "failures": failures,
        "by_kind": by_kind,
        "reasons": {kind: len([of for of, _ in reasons if of == kind]) for kind in KINDS},
        "seconds": round(time.monotonic() - started, 1),
    }


def _passed_before(ended: Path, numbers: range) -> dict[int, tuple[str, str]]:
    lines = ended.read_text().splitlines() if ended.exists() else []
    last = {number: (how, detail) for number, how, detail in map(json.loads, lines)}
    return {number: outcome for number, outcome in last.items() if number in numbers and outcome[0] in PASSED}


def write(case: Case, place: Path, good: Path) -> list[str]:
    """Write a case's files into a folder, and return its command line."""
    place.mkdir(parents=True)
    for name in case.copies:
        shutil.copytree(good / name, place / name)
    for name, content in case.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
    return [word.replace(GOOD, str(good)) for word in case.arguments]


# In a process that divides itself.


def work(jobs: list[tuple[int, int]], folder: Path, good: Path, seconds: float, results: Any) -> None:
    """One case after another; what became of each is sent at once."""
    import torch

    import skill_speech.cli
    import skill_speech.evaluation
    import skill_speech.exporting
    import skill_speech.reporting

    assert skill_speech.__version__
    torch.set_num_threads(1)
    before = own_memory()
    for number, seed in jobs:
        results.send((number, "begun", ""))
        place, case = folder / str(number), make_case(good, seed, number)
        arguments = write(case, place / "here", good)
        outcome, detail = attempt(arguments, place, seconds, before, case.stoppable)
        results.send((number, outcome, detail))
        shutil.rmtree(place, ignore_errors=True)
    results.close()


def own_memory() -> int:
    """Bytes that a process has which does nothing after it was divided from this one."""
    nothing = os.fork()
    if not nothing:
        os._exit(0)
    return os.wait4(nothing, 0)[2].ru_maxrss * 1024


def attempt(arguments: list[str], place: Path, seconds: float, before: int, stoppable: bool) -> tuple[str, str]:
    """How the command ends, in PLACE/here."""
    (place / "stdin").write_text("y\n" * 100)
    files = {name: os.open(place / name, os.O_RDWR | os.O_CREAT) for name in ("stdin", "stdout", "stderr", "seen")}
    started, child = time.monotonic(), os.fork()
    if not child:
        _command(arguments, place, files, seconds, stoppable)
    late = False
    while not (ended := os.wait4(child, os.WNOHANG))[0]:
        if time.monotonic() - started > WALL_FACTOR * seconds and not late:
            os.kill(child, signal.SIGKILL)
            late = True
        time.sleep(0.01)
    _, status, usage = ended
    asked = os.lseek(files["stdin"], 0, os.SEEK_CUR)
    for file in files.values():
        os.close(file)
    said = {
        name: (place / name).read_bytes()[: 2**20].decode("utf-8", "replace") for name in ("stdout", "stderr", "seen")
    }
    tail = said["stderr"][-1500:]
    if late or (os.WIFSIGNALED(status) and usage.ru_utime + usage.ru_stime > seconds):
        return "hang", tail
    if os.WIFSIGNALED(status):
        return "died", f"{signal.Signals(os.WTERMSIG(status)).name}: {tail}"
    if said["seen"]:
        return "forbidden", said["seen"][:1500]
    if asked:
        return "asked", f"{asked} bytes were read from standard input"
    if any(place.rglob(f"{CANARY}*")) or any(place.parent.glob(f"{CANARY}*")):
        return "code ran", tail
    code = os.WEXITSTATUS(status)
    if code not in ((0, 2, 143) if stoppable else (0, 2)):
        return "memory" if "MemoryError" in tail else "crash", f"{code}: {tail}"
    if usage.ru_maxrss * 1024 - before > MOST_MEMORY:
        return "memory", f"{usage.ru_maxrss * 1024 - before:,} bytes"
    if wrong := _unclean(said["stdout"] + said["stderr"]) or (code == 2 and _no_reason(said["stderr"])):
        return "unclean", f"{wrong}: {tail!r}"
    return {0: "done", 2: "refused", 143: "stopped"}[code], said["stderr"].rstrip().rpartition("\n")[2]


def _unclean(text: str) -> str:
    """What a terminal should not get."""
    lines = text.split("\n")
    if longest := max(map(len, lines)) > MOST_CHARACTERS:
        return f"a line of {longest} characters"
    if "Traceback" in text:
        return "a stack trace"
    return next((f"not printable: {line[:200]!a}" for line in lines if not line.isprintable()), "")


def _no_reason(text: str) -> str:
    """Whether the last line, and no other, says why."""
    lines = text.removesuffix("\n").split("\n")
    reasons = [line.startswith("skill-speech: ") for line in lines]
    return "" if reasons[-1] and sum(reasons) == 1 else "not one line that says why"


def _command(arguments: list[str], place: Path, files: dict[str, int], seconds: float, stoppable: bool) -> NoReturn:
    """In the child: the command line, watched; never returns."""
    from huggingface_hub import constants

    from skill_speech.cli import main

    constants.HF_HUB_OFFLINE = True  # a name that could be one of the hub is looked for in its cache alone

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN and not harmless(event, arguments, place):
            os.write(files["seen"], f"{event} {arguments!r}"[:300].encode("utf-8", "replace") + b"\n")
            if event.startswith(("os.", "subprocess", "socket")):
                raise PermissionError("not here")

    status = 1
    try:
        os.setsid()
        os.chdir(place / "here")
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(files[name], number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (until the process ends)
        if stoppable:
            signal.signal(signal.SIGXCPU, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        now = resource.getrusage(resource.RUSAGE_SELF)
        spent = math.ceil(now.ru_utime + now.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (spent, spent + (SECONDS_TO_STOP if stoppable else 1)))
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + MOST_ADDRESSES, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, 2**30))
        sys.addaudithook(watch)
        status = main(arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def table(result: dict[str, Any]) -> str:
    """What a document shows of a result: cases by kind, and how they ended."""
    head = "| kind | cases | done | refused | stopped when told | anything else | distinct refusals |"
    rows = [head, "|---|" + "---:|" * 6]
    total: Counter[str] = sum((Counter(counts) for counts in result["by_kind"].values()), Counter())
    reasons = {**result["reasons"], "all": sum(result["reasons"].values())}
    for kind, counts in [*result["by_kind"].items(), ("all", total)]:
        passed = [counts.get(how, 0) for how in PASSED]
        cells = [sum(counts.values()), *passed, sum(counts.values()) - sum(passed), reasons[kind]]
        rows.append(f"| {kind} | " + " | ".join(f"{cell:,}" for cell in cells) + " |")
    return "\n".join(rows)


def record(output: Path, *, count: int, seed: int, first: int = 0, jobs: int = 1) -> dict[str, Any]:
    """`structured`, written with where it was done to OUTPUT, a .json file; the rest beside it until all have passed.

    The table in docs/robustness.md is that of RECORD, and written with it.
    """
    from skill_speech.environment import environment
    from skill_speech.files import write_json

    from .scaling import insert

    result = structured(output.with_suffix(""), count=count, seed=seed, first=first, jobs=jobs)
    command = f"python -m lab.fuzz --structured {count} --seed {seed}" + (f" --first {first}" if first else "")
    write_json(output, {"command": command, **result, "machine": environment()})
    shutil.rmtree(output.with_suffix("") / "good")
    if not result["failures"]:
        shutil.rmtree(output.with_suffix(""))
    if output.resolve() == RECORD:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(insert(text, {"structured": table(result)}), encoding="utf-8")
    return result
