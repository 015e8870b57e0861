"""DPHuBERT's training step, rebuilt from Transformers' modules, in eager mode: the peer of the training benchmarks.

The arithmetic is the published one (arXiv 2305.17651 and its code): every matrix at full width for as long as there are
gates, gates multiplied onto channels, heads and units, attention with its scores and weights in memory, layer norms
over all channels, a layer at a time in the loss, AdamW without fusing. Modules are Transformers' WavLM ones; where
a gate or a pruned width has no place in them, as in the attention, the published lines are written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from skill_speech.encoder import EncoderConfig

NAME = "DPHuBERT's step, rebuilt from Transformers' modules"
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


class HardConcrete(nn.Module):
    """Gates of one layer, drawn anew at every pass (Louizos et al. 2018)."""

    def __init__(self, units: int, drop: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.empty(units).normal_(math.log(1 - drop) - math.log(drop), 0.01))

    def forward(self) -> Tensor:
        """The gates (units,)."""
        noise = torch.empty_like(self.log_alpha).uniform_(1e-6, 1 - 1e-6)
        drawn = torch.sigmoid((torch.log(noise / (1 - noise)) + self.log_alpha) / TEMPERATURE)
        return (drawn * (HIGH - LOW) + LOW).clamp(0, 1)

    def expected(self) -> Tensor:
        """Expected number of open gates."""
        return torch.sigmoid(self.log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sum()


class GatedOutput(nn.Module):
    """A module whose output is multiplied by gates on `dim`."""

    def __init__(self, inner: nn.Module, gates: HardConcrete, dim: int) -> None:
        super().__init__()
        self.inner, self.gates, self.dim = inner, gates, dim

    def forward(self, x: Tensor) -> Tensor:
        """What `inner` makes of x, gated."""
        gates = self.gates()
        return self.inner(x) * (gates[:, None] if self.dim == -2 else gates)


class PublishedAttention(WavLMAttention):
    """Attention over the remaining heads, with gates on them or without, as DPHuBERT's SelfAttention computes it."""

    def __init__(self, whole: WavLMAttention, heads: Sequence[int], gates: HardConcrete | None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({name: value for name, value in whole.__dict__.items() if name != "_modules"})
        self._modules = dict(whole._modules)
        self.heads, self.gates = list(heads), gates
        inner = len(self.heads) * self.head_dim
        if len(self.heads) < self.num_heads:
            for name in ("q_proj", "k_proj", "v_proj"):
                setattr(self, name, nn.Linear(self.embed_dim, inner))
            self.out_proj = nn.Linear(inner, self.embed_dim)

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Any, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """Called by Transformers' forward with the bias of all heads (B·H, T, T)."""
        B, T, _ = hidden_states.shape
        bias = gated_position_bias.view(B, self.num_heads, T, T)
        if len(self.heads) < self.num_heads:
            bias = bias[:, self.heads]
        shape = (B, T, len(self.heads), self.head_dim)
        query = self.q_proj(hidden_states).view(*shape).transpose(2, 1)
        key = self.k_proj(hidden_states).view(*shape).permute(0, 2, 3, 1)
        value = self.v_proj(hidden_states).view(*shape).transpose(2, 1)
        weights = (self.scaling * query) @ key
        weights = weights + bias
        weights = weights - weights.max(dim=-1, keepdim=True)[0]
        weights = F.dropout(F.softmax(weights, dim=-1), p=self.dropout, training=self.training)
        context = weights @ value
        if self.gates is not None:
            context = context * self.gates()[:, None, None]
        return self.out_proj(context.transpose(2, 1).reshape(B, T, -1)), None


def published_model(config: EncoderConfig, dropout: float = 0.1) -> WavLMModel:
    """Transformers' WavLM at full width, random weights, with the published dropout and no masking."""
    wide = WavLMConfig(
        hidden_dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=0.0,
        feat_proj_dropout=dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
        conv_dim=[conv.channels for conv in config.convs],
        num_hidden_layers=config.num_layers,
    )
    return WavLMModel(wide)


def published_student(config: EncoderConfig, gated: bool) -> WavLMModel:
    """A student of that shape; with gates where DPHuBERT has them."""
    model = published_model(config)
    for number, layer in enumerate(model.feature_extractor.conv_layers if gated else []):
        layer.activation = GatedOutput(layer.activation, HardConcrete(config.convs[number].channels, 0.01), -2)
    for layer, kept in zip(model.encoder.layers, config.layers, strict=True):
        gates = HardConcrete(len(kept.heads), 0.01) if gated else None
        layer.attention = PublishedAttention(layer.attention, kept.heads, gates)
        feed_forward = layer.feed_forward
        if kept.units != feed_forward.intermediate_dense.out_features:
            feed_forward.intermediate_dense = nn.Linear(config.hidden_size, kept.units)
            feed_forward.output_dense = nn.Linear(kept.units, config.hidden_size)
        if gated:
            act = feed_forward.intermediate_act_fn
            feed_forward.intermediate_act_fn = GatedOutput(act, HardConcrete(kept.units, 0.5), -1)
    return model


def distilled_layers(model: WavLMModel, waveforms: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Some of the states h_0 … h_L, h_0 being the feature projection's output."""
    features, _ = model.feature_projection(model.feature_extractor(waveforms).transpose(1, 2))
    encoder = model.encoder
    x = encoder.dropout(encoder.layer_norm(features + encoder.pos_conv_embed(features)))
    states, position_bias = [features], None
    for number, layer in enumerate(encoder.layers):
        x, position_bias = layer(x, position_bias=position_bias, index=number)
        states.append(x)
    return [states[layer] for layer in layers]


def published_step(
    teacher_config: EncoderConfig, student_config: EncoderConfig, waveforms: Tensor, gated: bool, autocast: bool
) -> Callable[[], float]:
    """A function that makes one update and returns the loss."""
    layers = sorted({0, *(round(teacher_config.num_layers * third / 3) for third in (1, 2, 3))})
    teacher = published_model(teacher_config).eval().requires_grad_(False)
    student = published_student(student_config, gated).train()
    width = teacher_config.hidden_size
    projections = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
    teacher, student, projections = (module.to(waveforms.device) for module in (teacher, student, projections))
    gates = [module for module in student.modules() if isinstance(module, HardConcrete)]
    multipliers = [nn.Parameter(torch.zeros((), device=waveforms.device)) for _ in range(2)]
    # Gradients only reach what the loss depends on.
    gate_weights = {id(gate.log_alpha) for gate in gates}
    weights = [weight for weight in student.parameters() if id(weight) not in gate_weights]
    weights += projections.parameters()
    groups: list[dict[str, Any]] = [{"params": weights, "lr": 2e-4}]
    if gated:
        groups.append({"params": [gate.log_alpha for gate in gates], "lr": 0.02})
        groups.append({"params": multipliers, "lr": 0.02, "maximize": True})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    everything = [weight for group in groups for weight in group["params"]]

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                wanted = distilled_layers(teacher, waveforms, layers)
            states = distilled_layers(student, waveforms, layers)
            made = [projections[int(layer > 0)](state) for layer, state in zip(layers, states, strict=True)]
            loss = torch.zeros((), device=waveforms.device)
            for state, target in zip(made, wanted, strict=True):
                state, target = state.float(), target.float()
                distance = F.l1_loss(state, target)
                similarity = F.cosine_similarity(state, target, dim=-1).mean()
                loss = loss + distance - similarity
        if gated:
            total = sum(gate.log_alpha.numel() for gate in gates)
            gap = 1 - torch.stack([gate.expected() for gate in gates]).sum() / total
            loss = loss + multipliers[0] * gap + multipliers[1] * gap.square()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(everything, 10.0)
        optimizer.step()
        return float(loss.detach())

    return step
