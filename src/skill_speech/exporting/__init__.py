"""Taking an encoder to other people's runtimes: Transformers, ONNX, torch.export, s3prl, TorchAudio."""

from .formats import Export, export
from .hugging_face import register
from .measuring import Measurement

__all__ = ["Export", "Measurement", "export", "register"]
