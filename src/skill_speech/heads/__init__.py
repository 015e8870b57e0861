"""What a fine-tuned model has on top of its encoder: CTC, sequence and frame classification, x-vectors."""

from .config import AdapterConfig, HeadConfig, TDNNConfig
from .heads import Head, HeadOutput, XVectorHead, make_head, margin_softmax_loss
from .model import SpeechModel, head_of, save_head, save_head_config

__all__ = [
    "AdapterConfig",
    "Head",
    "HeadConfig",
    "HeadOutput",
    "SpeechModel",
    "TDNNConfig",
    "XVectorHead",
    "head_of",
    "make_head",
    "margin_softmax_loss",
    "save_head",
    "save_head_config",
]
