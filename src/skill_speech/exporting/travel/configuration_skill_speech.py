# SPDX-License-Identifier: Apache-2.0
"""The configuration of an encoder and its heads, as Transformers wants it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import PretrainedConfig

from ...encoder.config import EncoderConfig, hubert_config
from ...heads.config import AdapterConfig, HeadConfig, TDNNConfig
from .remote_code import HEADS, write_code

CODE = ("remote_code.py", "configuration_skill_speech.py", "modeling_skill_speech.py", *HEADS)
AUTO_MAP = {
    "AutoConfig": "configuration_skill_speech.SkillSpeechConfig",
    "AutoModel": "modeling_skill_speech.SkillSpeechModel",
    "AutoModelForCTC": "modeling_skill_speech.SkillSpeechForCTC",
    "AutoModelForAudioClassification": "modeling_skill_speech.SkillSpeechForSequenceClassification",
    "AutoModelForAudioFrameClassification": "modeling_skill_speech.SkillSpeechForAudioFrameClassification",
    "AutoModelForAudioXVector": "modeling_skill_speech.SkillSpeechForXVector",
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
        use_weighted_layer_sum: whether a classifier reads a learned mean of all hidden states instead of the last.
        classifier_proj_size: width of the sequence classifier before pooling.
        tdnn_dim, tdnn_kernel, tdnn_dilation: width, kernel and dilation of each layer of an x-vector's time-delay
            network.
        xvector_output_dim: width of the speaker embedding.
        add_adapter: whether convolutions that shorten the sequence stand between the encoder and a CTC head or
            x-vector.
        num_adapter_layers, adapter_kernel_size, adapter_stride: how many they are, and their shape in frames.
        output_hidden_size: width of what comes out of them; None for the encoder's.
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
        tdnn_dim: Sequence[int] = (512, 512, 512, 512, 1500),
        tdnn_kernel: Sequence[int] = (5, 3, 3, 1, 1),
        tdnn_dilation: Sequence[int] = (1, 2, 3, 1, 1),
        xvector_output_dim: int = 512,
        add_adapter: bool = False,
        num_adapter_layers: int = 3,
        adapter_kernel_size: int = 3,
        adapter_stride: int = 2,
        output_hidden_size: int | None = None,
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
        self.tdnn_dim = list(tdnn_dim)
        self.tdnn_kernel = list(tdnn_kernel)
        self.tdnn_dilation = list(tdnn_dilation)
        self.xvector_output_dim = xvector_output_dim
        self.add_adapter = add_adapter
        self.num_adapter_layers = num_adapter_layers
        self.adapter_kernel_size = adapter_kernel_size
        self.adapter_stride = adapter_stride
        self.output_hidden_size = output_hidden_size

    @property
    def encoder_config(self) -> EncoderConfig:
        """The encoder's part of it."""
        return EncoderConfig.from_dict({field.name: getattr(self, field.name) for field in fields(EncoderConfig)})

    def head_config(self, kind: str) -> HeadConfig:
        """A head's part of it, but for what its outputs mean.

        Raises:
            ValueError: a value is out of range, or there is an adapter and the kind takes none.
        """
        lists = self.tdnn_dim, self.tdnn_kernel, self.tdnn_dilation
        if len({len(values) for values in lists}) > 1:
            raise ValueError("tdnn_dim, tdnn_kernel and tdnn_dilation are not of equal length")
        width = self.output_hidden_size or self.hidden_size
        shape = self.adapter_kernel_size, self.adapter_stride
        return HeadConfig(
            kind=kind,
            outputs=self.vocab_size if kind == "ctc" else self.num_labels,
            weighted_layer_sum=self.use_weighted_layer_sum and kind != "ctc",
            projection=self.classifier_proj_size,
            tdnn=tuple(TDNNConfig(*layer) for layer in zip(*lists)) if kind == "x-vector" else (),
            embedding=self.xvector_output_dim,
            adapter=AdapterConfig(self.num_adapter_layers, width, *shape) if self.add_adapter else None,
            dropout=self.final_dropout,
        )

    @property
    def extractor_normalizes(self) -> bool:
        """Whether the feature extractor normalizes the input, as is the rule in Transformers.

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
