"""How several ranks train one student: what Lightning is told about them, and sharded students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from .. import ranks
from ..encoder import Encoder
from ..pruning import find_gates
from .loss import DistillationLoss

Strategy = Literal["ddp", "fsdp"]


def placement(strategy: Strategy) -> dict[str, Any]:
    """Arguments of Lightning's Trainer: devices, nodes, strategy and who started the processes.

    `ranks.join` has made the process group before, for the analysis needs it too.
    """
    environment = ranks.environment()
    if environment is None:
        return {"devices": 1}
    local = ranks.local_count()
    how: DDPStrategy | ModelParallelStrategy
    if strategy == "fsdp":
        # One file per checkpoint, which any number of ranks reads, and one rank, and DDP.
        how = ModelParallelStrategy(ranks.count(), 1, save_distributed_checkpoint=False)
    else:
        # Buffers: there are none that training changes, and ranks validate at their own pace.
        how = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return {"devices": local, "num_nodes": ranks.count() // local, "plugins": [environment], "strategy": how}


def shard(student: Encoder, loss: DistillationLoss, mesh: Any) -> None:
    """Shard the weights of a student and its projections over ranks, in place (FSDP2): a part of each on every rank.

    Each transformer layer is gathered when its turn comes and given up behind it. Gates stay whole: they are a few
    thousand numbers, of which the penalty needs all at once; `average_whole_gradients` is for them.
    """
    from torch.distributed.fsdp import fully_shard

    gates = {gate.module.log_alpha for gate in find_gates(student)}
    for layer in student.layers:
        fully_shard(layer, mesh=mesh, ignored_params=gates)
    fully_shard(student, mesh=mesh, ignored_params=gates)
    fully_shard(loss, mesh=mesh)


def average_whole_gradients(module: nn.Module) -> None:
    """Make the gradients of weights that are not sharded the mean over ranks; the sharded ones are already."""
    for weight in module.parameters():
        if weight.grad is not None and not _is_sharded(weight.grad):
            ranks.sum_in_place(weight.grad)
            weight.grad /= ranks.count()


def clip_gradients(weights: Sequence[Tensor], limit: float) -> Tensor:
    """Scale gradients to a norm of at most `limit`, sharded ones and others together; returns the norm there was."""
    sharded = [weight.grad for weight in weights if weight.grad is not None and _is_sharded(weight.grad)]
    if not sharded:
        return torch.nn.utils.clip_grad_norm_(weights, limit)
    whole = [weight.grad for weight in weights if weight.grad is not None and not _is_sharded(weight.grad)]
    norm = torch.nn.utils.get_total_norm(sharded).full_tensor()  # type: ignore[attr-defined]
    if whole:
        norm = torch.linalg.vector_norm(torch.stack([norm, torch.nn.utils.get_total_norm(whole)]))
    for gradient in (*sharded, *whole):
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def gather(module: nn.Module) -> None:
    """Give every rank all weights of a sharded module again, on the CPU, and make it a common module again."""
    if not any(_is_sharded(weight) for weight in module.parameters()):
        return
    for part in module.modules():
        # torch has no way back from `fully_shard`. Its hooks, on every module with sharded weights, would put the
        # shards in place again; no other hooks are on an encoder.
        for hooks in ("state_dict_pre", "load_state_dict_pre", "forward_pre", "forward"):
            getattr(part, f"_{hooks}_hooks").clear()
        for name, weight in list(part.named_parameters(recurse=False)):
            if _is_sharded(weight):
                part.register_parameter(name, nn.Parameter(weight.detach().full_tensor().cpu()))  # type: ignore[operator]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
