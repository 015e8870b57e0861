"""skill-speech: make self-supervised speech encoders small by similarity-aware distillation and pruning."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .checkpoints import import_encoder, load_encoder, load_model
    from .compression import analyze, compress
    from .data import prepare
    from .encoder import Encoder, EncoderConfig
    from .errors import InputError
    from .evaluation import Evaluation, evaluate
    from .exporting import export, register
    from .kernels import optimize
    from .profiling import profile
    from .reporting import report

# Where each public name lives: imported when first asked for, so that `import skill_speech` does not import torch.
_HOMES = {
    "Encoder": "encoder",
    "EncoderConfig": "encoder",
    "Evaluation": "evaluation",
    "InputError": "errors",
    "analyze": "compression",
    "compress": "compression",
    "import_encoder": "checkpoints",
    "export": "exporting",
    "evaluate": "evaluation",
    "load_encoder": "checkpoints",
    "load_model": "checkpoints",
    "optimize": "kernels",
    "prepare": "data",
    "profile": "profiling",
    "register": "exporting",
    "report": "reporting",
}

__all__ = [
    "Encoder",
    "EncoderConfig",
    "Evaluation",
    "InputError",
    "__version__",
    "analyze",
    "compress",
    "evaluate",
    "export",
    "import_encoder",
    "load_encoder",
    "load_model",
    "optimize",
    "prepare",
    "profile",
    "register",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
