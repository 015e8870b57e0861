"""How several ranks train one student: what Fabric is told about them, and sharded students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from ..encoder import Encoder
from ..pruning import find_gates
from ..run import ranks
from .loss import DistillationLoss

Precision = Literal["bf16", "float32"]
Strategy = Literal["ddp", "fsdp"]


class Autocast(MixedPrecision):
    """Autocast in bfloat16 that leaves waveforms in float32: Fabric's own gives the module samples of 8 bits."""

    def convert_input(self, data: Any) -> Any:
        """As they are."""
        return data


def make_fabric(strategy: Strategy, precision: Precision, shard: Callable[[Any, Any], None]) -> Fabric:
    """Lightning's Fabric for these ranks: it knows devices, precision, and how gradients are exchanged.

    `ranks.join` has made the process group before, for the analysis needs it too.

    Args:
        strategy: "fsdp" shards the module by `shard`.
        precision: "bf16" is autocast with float32 weights.
        shard: shards a module over a mesh of devices, in place.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    plugins: list[Any] = [Autocast("bf16-mixed", kind)] if precision == "bf16" else []
    environment = ranks.environment()
    if environment is None:
        return Fabric(accelerator=kind, devices=1, plugins=plugins)
    plugins.append(environment)
    local = ranks.local_count()
    how: DDPStrategy | ModelParallelStrategy
    if strategy == "fsdp":

        def in_place(module: nn.Module, mesh: Any) -> nn.Module:
            shard(module, mesh["data_parallel"])
            return module

        how = ModelParallelStrategy(in_place, ranks.count(), 1)
    else:
        # Buffers: there are none that training changes, and ranks validate at their own pace.
        # Unused: the last norm of a pre-norm student takes no part, nor does what a sublayer without units leaves.
        how = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True)
    fabric = Fabric(accelerator=kind, devices=local, num_nodes=ranks.count() // local, plugins=plugins, strategy=how)
    fabric.launch()
    return fabric


def shard(student: Encoder, loss: DistillationLoss, mesh: Any) -> None:
    """Shard the weights of a student and its projections over ranks (FSDP2): a part of each on every rank.

    In place and permanently: torch has no way back, which is why copies are sharded and `gather` copies from them.

    Each transformer layer is gathered when its turn comes and freed afterwards. Gates stay whole: they are a few
    thousand numbers, of which the penalty needs all at once; `average_whole_gradients` is for them.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    whole = {gate.module.log_alpha for gate in find_gates(student)}
    # Of layers that pruning has emptied: torch 2.13 cannot gather what has no elements.
    whole |= {weight for weight in student.parameters() if not weight.numel()}
    for layer in student.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(student, mesh=mesh, ignored_params=whole)
    for part in ("features", "context"):  # which are called one by one where frames are masked between them
        register_fsdp_forward_method(student, part)
    fully_shard(loss, mesh=mesh)


def average_whole_gradients(module: nn.Module) -> None:
    """Make the gradients of weights that are not sharded the mean over ranks; the sharded ones are already."""
    for weight in module.parameters():
        if weight.grad is not None and not is_sharded(weight.grad):
            ranks.sum_in_place(weight.grad)
            weight.grad /= ranks.count()


def clip_gradients(weights: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients to a norm of at most `limit`, sharded ones and others together; returns the norm there was."""
    sharded = [weight.grad for weight in weights if weight.grad is not None and is_sharded(weight.grad)]
    if not sharded:
        return torch.nn.utils.clip_grad_norm_(weights, limit)
    whole = [weight.grad for weight in weights if weight.grad is not None and not is_sharded(weight.grad)]
    norm = torch.nn.utils.get_total_norm(sharded).full_tensor()  # type: ignore[attr-defined]
    if whole:
        norm = torch.linalg.vector_norm(torch.stack([norm, torch.nn.utils.get_total_norm(whole)]))
    for gradient in (*sharded, *whole):
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy all weights of a sharded module to one of the same shape that is not, on every rank."""
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in sharded.named_parameters():
            full = weight.full_tensor() if is_sharded(weight) else weight  # type: ignore[attr-defined]
            weights[name].copy_(full)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded, on the first rank; every rank has to ask, and the others get nothing."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full.cpu() if ranks.is_first() else torch.empty(0)


def sharded_like(like: Tensor, full: Tensor) -> Tensor:
    """A tensor that every rank has whole, sharded as another one of its shape is."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a rank has a part of it."""
    return hasattr(tensor, "full_tensor")
