"""The configuration of an encoder and its heads, as Transformers wants it."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from ...encoder.config import EncoderConfig, hubert_config
from .remote_code import write_code

CODE = ("remote_code.py", "configuration_skill_speech.py", "modeling_skill_speech.py")
AUTO_MAP = {
    "AutoConfig": "configuration_skill_speech.SkillSpeechConfig",
    "AutoModel": "modeling_skill_speech.SkillSpeechModel",
    "AutoModelForCTC": "modeling_skill_speech.SkillSpeechForCTC",
    "AutoModelForAudioClassification": "modeling_skill_speech.SkillSpeechForSequenceClassification",
}


class SkillSpeechConfig(PretrainedConfig):
    """The fields of `EncoderConfig`, HuBERT Base unless given, and those of the heads.

    Where Transformers has another name for a field of the encoder (`layerdrop`, `num_attention_heads`, …), both work.

    Args:
        vocab_size: outputs of the CTC head.
        pad_token_id: the blank of CTC.
        ctc_loss_reduction: "sum" or "mean".
        ctc_zero_infinity: whether an utterance too short for its labels counts as zero loss.
        final_dropout: probability in front of the CTC head.
        use_weighted_layer_sum: whether the classifier reads a learned mean of all hidden states instead of the last.
        classifier_proj_size: width of the classifier before pooling.
        **kwargs: the encoder's fields and those of every configuration.
    """

    model_type = "skill-speech"
    attribute_map = {  # noqa: RUF012 (as in Transformers)
        "feat_proj_dropout": "feature_dropout",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "layerdrop": "layer_dropout",
        "num_attention_heads": "num_heads",
    }

    def __init__(
        self,
        *,
        vocab_size: int = 32,
        pad_token_id: int = 0,
        ctc_loss_reduction: str = "sum",
        ctc_zero_infinity: bool = False,
        final_dropout: float = 0.0,
        use_weighted_layer_sum: bool = False,
        classifier_proj_size: int = 256,
        **kwargs: Any,
    ) -> None:
        for name, value in hubert_config().to_dict().items():
            setattr(self, name, kwargs.pop(name, value))
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.pad_token_id = pad_token_id
        self.ctc_loss_reduction = ctc_loss_reduction
        self.ctc_zero_infinity = ctc_zero_infinity
        self.final_dropout = final_dropout
        self.use_weighted_layer_sum = use_weighted_layer_sum
        self.classifier_proj_size = classifier_proj_size

    @property
    def encoder_config(self) -> EncoderConfig:
        """The encoder's part of it."""
        return EncoderConfig.from_dict({field.name: getattr(self, field.name) for field in fields(EncoderConfig)})

    @property
    def extractor_normalizes(self) -> bool:
        """Whether the feature extractor normalises the input, as is the rule in Transformers.

        It adds 1e-7 to the variance. For an encoder that learned with another number the model does it, and the
        extractor does not.
        """
        return self.input_normalization and self.input_norm_eps == 1e-7

    @property
    def num_hidden_layers(self) -> int:
        """Depth of the transformer."""
        return self.encoder_config.num_layers

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one frame to the next."""
        return self.encoder_config.hop

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """config.json and the code that it names, so that the folder loads where skill_speech is not installed."""
        self.auto_map = dict(AUTO_MAP)
        if self._auto_class is None:  # Transformers itself copies code that it loaded as remote code, and no other
            os.makedirs(save_directory, exist_ok=True)
            write_code(save_directory, CODE)
        super().save_pretrained(save_directory, *args, **kwargs)
