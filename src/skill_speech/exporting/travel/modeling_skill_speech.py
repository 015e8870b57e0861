"""The encoder as a Transformers model, alone and with the heads that people fine-tune.

Shapes: B utterances, T samples or frames, D hidden size, V vocabulary or labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput

# Earlier versions of Transformers take along the files that this one imports, but not those that they import in turn:
# that is what the imports that nothing here uses are for.
from ...encoder.config import EncoderConfig  # noqa: F401
from ...encoder.encoder import Encoder, first_steps, initialize
from ...encoder.inputs import as_tensor
from ...encoder.layers import TransformerLayer  # noqa: F401
from .configuration_skill_speech import SkillSpeechConfig
from .remote_code import write_code  # noqa: F401


class SkillSpeechPreTrainedModel(PreTrainedModel):
    """What the models have in common: how Transformers loads, splits and initialises them."""

    config_class = SkillSpeechConfig
    base_model_prefix = "skill_speech"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ConvLayer", "TransformerLayer"]  # noqa: RUF012 (as in Transformers)

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module)
        if isinstance(module, SkillSpeechForSequenceClassification) and module.layer_weights is not None:
            nn.init.constant_(module.layer_weights, 1 / len(module.layer_weights))

    def get_input_embeddings(self) -> None:
        """There are none: the input is audio."""

    def get_output_embeddings(self) -> None:
        """There are none: a head has nothing to share its weights with."""

    def _inputs(self, input_values: Any, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, T) and their mask (B, T), which may be given as arrays or lists."""
        if torch.compiler.is_compiling():
            return input_values, attention_mask
        waveforms_BT, lengths_B = self.base_model.encoder.as_batch(input_values)
        if attention_mask is not None:
            return waveforms_BT, _mask(attention_mask, waveforms_BT)
        if lengths_B is None:
            return waveforms_BT, None
        return waveforms_BT, first_steps(lengths_B, waveforms_BT.shape[1])

    def _get_feat_extract_output_lengths(self, lengths_B: Tensor) -> Tensor:
        return self.base_model.encoder.num_frames(lengths_B)

    def freeze_feature_encoder(self) -> None:
        """Stop training the convolutions."""
        self.base_model.encoder.convs.requires_grad_(False)

    def freeze_base_model(self) -> None:
        """Stop training everything but the head."""
        self.base_model.requires_grad_(False)


class SkillSpeechModel(SkillSpeechPreTrainedModel):
    """The encoder alone."""

    def __init__(self, config: SkillSpeechConfig) -> None:
        super().__init__(config)
        # Once is enough: preprocessor_config.json says whether the feature extractor did it.
        itself = config.input_normalization and not config.extractor_normalizes
        self.encoder = Encoder(config.encoder_config.replace(input_normalization=itself))
        self.post_init()

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | BaseModelOutput:
        """Encode waveforms.

        Args:
            input_values: what the feature extractor makes of waveforms (B, T), padded at the end. Also an array, or a
                list of utterances of any lengths.
            attention_mask: 1 for samples and 0 for padding (B, T); None when nothing is padded.
            output_attentions: not available.
            output_hidden_states: whether to return all hidden states, from the first layer's input to the last layer's
                output.
            return_dict: False for a tuple.

        Raises:
            ValueError: an utterance is shorter than the receptive field (25 ms), the samples are no floating-point
                numbers, the mask is not the waveforms' or has padding elsewhere than at the end, or attentions are
                asked for. What a mask on a GPU says is not looked at.
        """
        if output_attentions:
            raise ValueError("attentions are not available: the encoder does not keep them")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        input_values, attention_mask = self._inputs(input_values, attention_mask)
        lengths_B = None if attention_mask is None else attention_mask.sum(-1)
        made = self.encoder(input_values.to(next(self.encoder.parameters()).dtype), lengths_B)
        output = BaseModelOutput(
            last_hidden_state=made.last_hidden_state_BTD,
            hidden_states=made.hidden_states if output_hidden_states else None,
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


class SkillSpeechForCTC(SkillSpeechPreTrainedModel):
    """The encoder with a linear layer over characters, phonemes, … trained by CTC (Graves et al. 2006)."""

    def __init__(self, config: SkillSpeechConfig) -> None:
        super().__init__(config)
        self.skill_speech = SkillSpeechModel(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...] | CausalLMOutput:
        """Logits (B, T, V) and, with labels, the loss; the other arguments are the encoder's.

        Args:
            labels: tokens (B, N), padded with -100.

        Raises:
            ValueError: a label is not in the vocabulary.
        """
        if labels is not None and labels.max() >= self.config.vocab_size:
            raise ValueError(f"a label is {int(labels.max())}; vocab_size is {self.config.vocab_size}")
        input_values, attention_mask = self._inputs(input_values, attention_mask)
        outputs = self.skill_speech(input_values, attention_mask, output_attentions, output_hidden_states, True)
        logits_BTV = self.lm_head(self.dropout(outputs.last_hidden_state))
        output = CausalLMOutput(
            loss=None if labels is None else self._loss(logits_BTV, attention_mask, labels),
            logits=logits_BTV,
            hidden_states=outputs.hidden_states,
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()

    def _loss(self, logits_BTV: Tensor, attention_mask: Tensor | None, labels_BN: Tensor) -> Tensor:
        B, T, _ = logits_BTV.shape
        if attention_mask is None:
            frames_B = torch.full((B,), T, device=logits_BTV.device)
        else:
            frames_B = self._get_feat_extract_output_lengths(attention_mask.sum(-1))
        given_BN = labels_BN >= 0
        # cuDNN's CTC is not deterministic and wants its lengths on the CPU.
        with torch.backends.cudnn.flags(enabled=False):
            return F.ctc_loss(
                logits_BTV.float().log_softmax(-1).transpose(0, 1),
                labels_BN[given_BN],
                frames_B,
                given_BN.sum(-1),
                blank=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )


class SkillSpeechForSequenceClassification(SkillSpeechPreTrainedModel):
    """The encoder, a projection, the mean over frames and a linear layer over labels, as SUPERB classifies."""

    def __init__(self, config: SkillSpeechConfig) -> None:
        super().__init__(config)
        self.skill_speech = SkillSpeechModel(config)
        states = config.num_hidden_layers + 1
        self.layer_weights = nn.Parameter(torch.ones(states) / states) if config.use_weighted_layer_sum else None
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...] | SequenceClassifierOutput:
        """Logits (B, V) and, with labels (B,), the cross entropy; the other arguments are the encoder's."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        input_values, attention_mask = self._inputs(input_values, attention_mask)
        outputs = self.skill_speech(input_values, attention_mask, output_attentions, True, True)
        hidden_BTD = outputs.last_hidden_state
        if self.layer_weights is not None:
            weights_L111 = self.layer_weights.softmax(-1)[:, None, None, None]
            hidden_BTD = (torch.stack(outputs.hidden_states) * weights_L111).sum(0)
        projected_BTD = self.projector(hidden_BTD)
        if attention_mask is None:
            pooled_BD = projected_BTD.mean(1)
        else:
            frames_B = self._get_feat_extract_output_lengths(attention_mask.sum(-1))
            valid_BT = first_steps(frames_B, projected_BTD.shape[1])
            pooled_BD = projected_BTD.masked_fill(~valid_BT[..., None], 0).sum(1) / frames_B[:, None]
        logits_BV = self.classifier(pooled_BD)
        output = SequenceClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits_BV.float(), labels),
            logits=logits_BV,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
        )
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


def _mask(attention_mask: Any, waveforms_BT: Tensor) -> Tensor:
    """The mask as booleans (B, T).

    Raises:
        ValueError: it has another shape, or padding elsewhere than at the end.
    """
    mask_BT = as_tensor(attention_mask, "attention_mask").to(waveforms_BT.device) != 0
    mask_BT = mask_BT[None] if mask_BT.dim() == 1 else mask_BT
    if mask_BT.shape != waveforms_BT.shape:
        shapes = tuple(mask_BT.shape), tuple(waveforms_BT.shape)
        raise ValueError("attention_mask is {}; the waveforms are {}".format(*shapes))
    if mask_BT.device.type == "cpu" and bool((~mask_BT[:, :-1] & mask_BT[:, 1:]).any()):
        raise ValueError("attention_mask has padding before samples; the encoder takes padding at the end alone")
    return mask_BT


def _as_dict(config: SkillSpeechConfig, return_dict: bool | None) -> bool:
    return config.return_dict if return_dict is None else return_dict
