"""What a speech encoder is, in plain torch: one implementation of the whole family, every width per layer.

These files need torch and nothing else, so that they can travel inside an exported model.
"""

from .config import ConvConfig, EncoderConfig, LayerConfig, full_layers, hubert_config, wavlm_config
from .encoder import Encoder, EncoderOutput
from .layers import LearnedScale, UnitScale

__all__ = [
    "ConvConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderOutput",
    "LayerConfig",
    "LearnedScale",
    "UnitScale",
    "full_layers",
    "hubert_config",
    "wavlm_config",
]
