"""Processes that carry out one run together: how they are started, who is who, and what they tell one another.

A rank is one process, with one accelerator where there are any. Every rank runs the same function from its first line
to its last, so that all of them take the same turns: what depends on files is looked up by the first rank, which tells
the others (`on_first`), and only the first rank writes. In a single process everything here does nothing.

torch is not imported before there is more than one process.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError
from .signals import Stopped, StopSignals

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment
    from torch import Tensor

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Made = TypeVar("Made")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others, who may be writing a report or decoding hours of audio."""

FORWARDED = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"

SECONDS_BETWEEN_LOOKS = 0.5
"""How often a starter looks whether all its processes are alive."""


def rank() -> int:
    """The number of this process, 0 for the only or the first one."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def count() -> int:
    """The number of processes, 1 without others."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def local_count() -> int:
    """The number of processes on this machine, the same on every one.

    Raises:
        InputError: it is not.
    """
    import socket

    hosts = gathered(os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or socket.gethostname())
    numbers = {hosts.count(host) for host in hosts}
    if len(numbers) > 1:
        raise InputError(f"the nodes run {sorted(numbers)} processes: start the same number on each")
    return numbers.pop()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def share(items: Sequence[Item]) -> list[Item]:
    """Every `count()`-th of the items, starting with number `rank()`: what this process takes care of."""
    return list(items[rank() :: count()])


def on_first(make: Callable[[], Made]) -> Made:
    """What `make` returns or raises on the first rank, on all of them; the others do not call it, and wait.

    What is returned is pickled on its way.
    """
    group = _group()
    if group is None:
        return make()
    outcome: list[Any] = [None]
    if is_first():
        try:
            outcome = [(True, make())]
        except Exception as error:
            outcome = [(False, _portable(error))]
            group.broadcast_object_list(outcome, 0)
            raise
    group.broadcast_object_list(outcome, 0)
    well, value = outcome[0]
    if not well:
        raise value
    return value


def gathered(value: Made) -> list[Made]:
    """What every rank gave, in the order of the ranks, on all of them; it is pickled on its way."""
    group = _group()
    if group is None:
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def sum_in_place(tensor: Tensor) -> None:
    """Add the ranks' tensors of the same shape; afterwards each has the sum."""
    group = _group()
    if group is not None:
        group.all_reduce(tensor)


def largest(number: int) -> int:
    """The largest of the numbers that the ranks give, on all of them."""
    group = _group()
    if group is None:
        return number
    import torch

    number_1 = torch.tensor([number])
    group.all_reduce(number_1, group.ReduceOp.MAX)
    return int(number_1)


def told_to_stop(stop: StopSignals) -> bool:
    """Whether any rank has been told to stop, which may be one of them alone; from then on all of them have."""
    signum = largest(stop.requested or 0)
    if signum:
        stop.requested = signum
    return bool(signum)


def environment() -> ClusterEnvironment | None:
    """What torchrun or SLURM's srun says of the processes it started; None outside of them or for a single process."""
    if not ("TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1):
        return None
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            found = kind()
            return found if found.world_size() > 1 else None
    return None


def to_be_started(devices: int, nodes: int) -> bool:
    """Whether these many processes are asked for and have yet to be started, by `start`.

    Raises:
        InputError: more than one node without torchrun or srun, or other numbers than theirs.
    """
    found = environment()
    if found is not None:
        if devices * nodes not in (1, found.world_size()):
            raise InputError(
                f"{devices} devices on {nodes} nodes were requested, but {found.world_size()} processes were started: "
                "make them agree, or leave out --devices and --nodes"
            )
        return False
    if nodes > 1:
        raise InputError(
            f"{nodes} nodes were requested: start the command on each of them by torchrun or srun, as docs/scaling.md "
            "shows"
        )
    return devices > 1


def join() -> None:
    """Become a rank of the group, where torchrun, srun or `start` started this process beside others."""
    found = environment()
    if found is None or _group() is not None:
        return
    import torch

    os.environ.setdefault("MASTER_ADDR", found.main_address)
    os.environ.setdefault("MASTER_PORT", str(found.main_port))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(found.local_rank())
    torch.distributed.init_process_group(
        # Numbers and files' names travel between CPUs, gradients between accelerators.
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        rank=found.global_rank(),
        world_size=found.world_size(),
        timeout=TIMEOUT,
    )
    atexit.register(_leave)
    if not is_first():
        logging.getLogger("skill_speech").setLevel(logging.WARNING)


def start(function: Callable[..., Made], arguments: dict[str, Any], devices: int) -> Made:
    """Call a function in `devices` processes on this machine and return what it returns on the first rank.

    When one of them dies the others are ended, and what it died of is raised here.

    Args:
        function: of a module's top level; it has to call `join`.
        arguments: by name; they are pickled.
        devices: number of processes.

    Raises:
        InputError: as one of the processes raised it, or one was killed from outside.
        RuntimeError: whatever else a process died of, with its traceback.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, (os.cpu_count() or 1) // devices))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    # Signals to the starter are forwarded to the ranks. Old versions of torch know no others than the first four.
    forwarded: dict[str, Any] = {"signals_to_handle": FORWARDED} if hasattr(LaunchConfig, "signals_to_handle") else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=SECONDS_BETWEEN_LOOKS,
        **forwarded,
    )
    to_terminal = bool(logging.getLogger("skill_speech").handlers)
    notes = Path(tempfile.mkdtemp(prefix="skill-speech-"))
    handlers = {number: signal.getsignal(number) for number in signal.Signals if number.name in FORWARDED.split(",")}
    try:
        results: dict[int, Made] = elastic_launch(config, _work)(function, arguments, to_terminal, notes)
    except ChildFailedError as error:
        raise _cause(error, devices, notes) from None
    except SignalException as error:
        # The processes were sent it too and have had half a minute to write where they are.
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Stopped(error.sigval) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # torch does not restore them
                signal.signal(number, handler or signal.SIG_DFL)
        shutil.rmtree(notes, ignore_errors=True)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
    return results[0]


def _work(function: Callable[..., Made], arguments: dict[str, Any], to_terminal: bool, notes: Path) -> Made:
    if to_terminal:
        from .progress import log_to_terminal

        log_to_terminal()
    try:
        return function(**arguments)
    except Exception as error:
        number = int(os.environ["RANK"])
        values = {
            "time": time.time(),
            "kind": type(error).__name__,
            "message": str(error),
            "trace": traceback.format_exc(),
            "mistake": isinstance(error, InputError),
        }
        (notes / f"{number}.json").write_text(json.dumps(values), encoding="utf-8")
        raise


def _cause(failed: Any, devices: int, notes: Path) -> BaseException:
    """What to tell of the ranks' failures, of which torch names one: not always the one that was the cause.

    Every rank has noted its own error. A rank that was killed has not; the others then note that they have lost it,
    sometimes before their starter looks.
    """
    for number, failure in failed.failures.items():
        if failure.exitcode in (128 + signal.SIGTERM, 128 + signal.SIGUSR1):
            return Stopped(failure.exitcode - 128)
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            return _killed(f"rank {number} (process {failure.pid}) was killed by {name}")
    errors = {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in notes.glob("*.json")}
    lost = ("Connection", "connection", "gloo", "NCCL")
    own = {number: error for number, error in errors.items() if not any(word in str(error["message"]) for word in lost)}
    gone = sorted(set(range(devices)) - set(errors))
    if errors and not own and gone:
        return _killed(f"rank {', '.join(map(str, gone))} exited without an error")
    if not errors:
        return RuntimeError(f"a rank failed: {failed}")
    number, error = min((own or errors).items(), key=lambda item: item[1]["time"])
    if error["mistake"]:
        return InputError(error["message"])
    return RuntimeError(f"rank {number} failed: {error['kind']}: {error['message']}\n{error['trace']}")


def _killed(what: str) -> InputError:
    return InputError(
        f"{what}, probably because memory ran out; the other ranks were stopped. Rerun the same command to resume "
        "from the last checkpoint"
    )


def _group() -> Any:
    """torch.distributed where a group has been joined, else None."""
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return distributed if joined else None


def _leave() -> None:
    group = _group()
    if group is not None:
        group.destroy_process_group()


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
