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


def count_batches_anew(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Tell Lightning's loop how many batches this rank would have seen at a checkpoint of another number of ranks.

    It counts them to know where an update ends: `accumulate` of this rank's batches each.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    for counts in loop.get("epoch_loop.batch_progress", {}).values():
        if isinstance(counts, dict):
            # "ready" is the batch at hand; "completed" may lag behind by one, which tells Lightning where it was saved.
            more = checkpoint["global_step"] * accumulate - counts["ready"]
            counts.update({name: number + more for name, number in counts.items()})


def shard(student: Encoder, loss: DistillationLoss, mesh: Any) -> None:
    """Shard the weights of a student and its projections over ranks (FSDP2): a part of each on every rank.

    In place and for good: torch has no way back, which is why copies are sharded and `gather` copies from them.

    Each transformer layer is gathered when its turn comes and given up behind it. Gates stay whole: they are a few
    thousand numbers, of which the penalty needs all at once; `average_whole_gradients` is for them.
    """
    from torch.distributed.fsdp import fully_shard

    whole = {gate.module.log_alpha for gate in find_gates(student)}
    # Of layers that pruning has emptied: torch 2.13 cannot gather what has no elements.
    whole |= {weight for weight in student.parameters() if not weight.numel()}
    for layer in student.layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(student, mesh=mesh, ignored_params=whole)
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


def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy all weights of a sharded module to one of the same shape that is not, on every rank."""
    weights = dict(whole.named_parameters())
    with torch.no_grad():
        for name, weight in sharded.named_parameters():
            full = weight.full_tensor() if _is_sharded(weight) else weight  # type: ignore[attr-defined]
            weights[name].copy_(full)


def load_whole(module: nn.Module, weights: dict[str, Any]) -> None:
    """Load whole weights into a module that may be sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if any(_is_sharded(weight) for weight in module.parameters()):
        set_model_state_dict(module, weights, options=StateDictOptions(full_state_dict=True))
    else:
        module.load_state_dict(weights)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
