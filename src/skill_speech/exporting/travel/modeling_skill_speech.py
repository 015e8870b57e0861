# SPDX-License-Identifier: Apache-2.0
"""The encoder as a Transformers model, alone and with the heads that people fine-tune.

Shapes: B utterances, T samples or frames, D hidden size, V vocabulary or labels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XVectorOutput,
)

# Earlier versions of Transformers take along the files that this one imports, but not those that they import in turn:
# that is what the imports that nothing here uses are for.
from ...encoder.config import EncoderConfig  # noqa: F401
from ...encoder.encoder import Encoder, first_steps, initialize
from ...encoder.inputs import as_tensor
from ...encoder.layers import TransformerLayer  # noqa: F401
from ...heads.config import HeadConfig  # noqa: F401
from ...heads.heads import (
    AMSoftmax,
    CTCHead,
    FrameHead,
    Head,
    HeadOutput,
    SequenceHead,
    XVectorHead,
    make_head,
    margin_softmax_loss,
)
from .configuration_skill_speech import SkillSpeechConfig
from .remote_code import write_code  # noqa: F401


class SkillSpeechPreTrainedModel(PreTrainedModel):
    """What the models have in common: how Transformers loads, splits and initializes them."""

    config_class = SkillSpeechConfig
    base_model_prefix = "skill_speech"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ConvLayer", "TransformerLayer"]  # noqa: RUF012 (as in Transformers)

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module)
        if isinstance(module, SkillSpeechWithHead) and module.layer_weights is not None:
            nn.init.constant_(module.layer_weights, 1 / len(module.layer_weights))
        elif isinstance(module, AMSoftmax):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):  # of an adapter, which is new where the encoder's are there
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

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


class Encoded(NamedTuple):
    """What a head reads of an encoder's output."""

    last_hidden_state_BTD: Tensor
    hidden_states: tuple[Tensor, ...]
    lengths_B: Tensor


class SkillSpeechWithHead(SkillSpeechPreTrainedModel):
    """The encoder and a head, whose parts are the model's own: their weights have Transformers' names."""

    kind = ""
    head_class: Any = Head
    read = Head.read

    def __init__(self, config: SkillSpeechConfig) -> None:
        super().__init__(config)
        self.skill_speech = SkillSpeechModel(config)
        head = make_head(config.head_config(self.kind), config.encoder_config)
        self.length_aware = head.length_aware
        self.layer_weights, self.adapter = head.layer_weights, head.adapter
        for name, part in head.named_children():
            setattr(self, name, part)
        self.post_init()

    def _head(
        self,
        input_values: Any,
        attention_mask: Any,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> tuple[HeadOutput, tuple[Tensor, ...] | None]:
        """What the head makes of waveforms, and the encoder's hidden states if they are asked for."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        input_values, attention_mask = self._inputs(input_values, attention_mask)
        outputs = self.skill_speech(input_values, attention_mask, output_attentions, True, True)
        B, T, _ = outputs.last_hidden_state.shape
        if attention_mask is None:
            frames_B = torch.full((B,), T, device=outputs.last_hidden_state.device)
        else:
            frames_B = self._get_feat_extract_output_lengths(attention_mask.sum(-1))
        encoded = Encoded(outputs.last_hidden_state, outputs.hidden_states, frames_B)
        return self.head_class.forward(self, encoded), outputs.hidden_states if output_hidden_states else None


class SkillSpeechForCTC(SkillSpeechWithHead):
    """The encoder with a linear layer over characters, phonemes, … trained by CTC (Graves et al. 2006)."""

    kind, head_class = "ctc", CTCHead

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
        made, states = self._head(input_values, attention_mask, output_attentions, output_hidden_states)
        loss = None if labels is None else self._loss(made.logits, made.lengths_B, labels)
        output = CausalLMOutput(loss=loss, logits=made.logits, hidden_states=states)
        return output if _as_dict(self.config, return_dict) else output.to_tuple()

    def _loss(self, logits_BTV: Tensor, frames_B: Any, labels_BN: Tensor) -> Tensor:
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


class SkillSpeechForSequenceClassification(SkillSpeechWithHead):
    """The encoder, a projection, the mean over frames and a linear layer over labels, as SUPERB classifies."""

    kind, head_class = "sequence", SequenceHead

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...] | SequenceClassifierOutput:
        """Logits (B, V) and, with labels, the loss; the other arguments are the encoder's.

        Args:
            labels: (B,); of a `problem_type` of "multi_label_classification" zeros and ones (B, V), of "regression"
                numbers of the logits' shape.
        """
        made, states = self._head(input_values, attention_mask, output_attentions, output_hidden_states)
        loss = None if labels is None else self._loss(made.logits.float(), labels)
        output = SequenceClassifierOutput(loss=loss, logits=made.logits, hidden_states=states)
        return output if _as_dict(self.config, return_dict) else output.to_tuple()

    def _loss(self, logits_BV: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return F.mse_loss(logits_BV, labels.to(logits_BV.dtype).view_as(logits_BV))
        if self.config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits_BV, labels.to(logits_BV.dtype))
        return F.cross_entropy(logits_BV, labels)


class SkillSpeechForAudioFrameClassification(SkillSpeechWithHead):
    """The encoder and a linear layer over labels, frame by frame."""

    kind, head_class = "frame", FrameHead

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...] | TokenClassifierOutput:
        """Logits (B, T, V) and, with labels, the cross entropy; the other arguments are the encoder's.

        Args:
            labels: ones and zeros (B, T, V), of which the first largest counts, as in Transformers.
        """
        made, states = self._head(input_values, attention_mask, output_attentions, output_hidden_states)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(made.logits.flatten(0, 1).float(), labels.flatten(0, 1).argmax(-1))
        output = TokenClassifierOutput(loss=loss, logits=made.logits, hidden_states=states)
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


class SkillSpeechForXVector(SkillSpeechWithHead):
    """The encoder and a time-delay network that makes one embedding of an utterance: whose voice it is."""

    kind, head_class = "x-vector", XVectorHead

    def forward(
        self,
        input_values: Any,
        attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...] | XVectorOutput:
        """Embeddings (B, D), logits (B, D) and, with labels (B,), the additive margin softmax (arXiv 1801.05599)."""
        made, states = self._head(input_values, attention_mask, output_attentions, output_hidden_states)
        loss = None
        if labels is not None:
            loss = margin_softmax_loss(self.objective(made.logits).float(), labels.flatten())
        output = XVectorOutput(loss=loss, logits=made.logits, embeddings=made.embeddings_BD, hidden_states=states)
        return output if _as_dict(self.config, return_dict) else output.to_tuple()


OF_KIND: dict[str, type[SkillSpeechWithHead]] = {
    model.kind: model
    for model in (
        SkillSpeechForCTC,
        SkillSpeechForSequenceClassification,
        SkillSpeechForAudioFrameClassification,
        SkillSpeechForXVector,
    )
}


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
