"""How several ranks train one student: what Lightning is told about them."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy

from .. import ranks


def placement(strategy: Literal["ddp", "fsdp"]) -> dict[str, Any]:
    """Arguments of Lightning's Trainer: devices, nodes, strategy and who started the processes.

    `ranks.join` has made the process group before, for the analysis needs it too.
    """
    environment = ranks.environment()
    if environment is None:
        return {"devices": 1}
    local = ranks.local_count()
    return {
        "devices": local,
        "num_nodes": ranks.count() // local,
        "plugins": [environment],
        "strategy": DDPStrategy(
            # There are none that training changes, and ranks validate at their own pace.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        ),
    }
