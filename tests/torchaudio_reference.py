"""The TorchAudio/DPHuBERT layout by its description alone: random files in it, and what a model of it computes.

Nothing here uses the library. A model is a function of the file's two parts, the state dict and the configuration.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
KERNELS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


def student_config(wavlm: bool, large: bool, **changes: Any) -> dict[str, Any]:
    """A small uneven student: every width differs, layer 2 has no attention, layer 3 no feed-forward."""
    values: dict[str, Any] = {
        "extractor_mode": "layer_norm" if large else "group_norm",
        "extractor_conv_layer_config": [
            (channels, *shape) for channels, shape in zip((11, 16, 13, 24, 9, 20, 17), KERNELS, strict=True)
        ],
        "extractor_conv_bias": large and not wavlm,
        "encoder_embed_dim": 48,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 4,
        "encoder_use_attention": [True, False, True, True],
        "encoder_use_feed_forward": [True, True, False, True],
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": [13, 40, 0, 1],
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": large,
        "encoder_layer_drop": 0.05,
        "aux_num_out": None,
        "normalize_waveform": large,
        "extractor_prune_conv_channels": False,
        "encoder_prune_attention_heads": False,
        "encoder_prune_attention_layer": False,
        "encoder_prune_feed_forward_intermediate": False,
        "encoder_prune_feed_forward_layer": False,
    }
    if wavlm:
        values |= {
            "encoder_total_num_heads": [6] * 4,
            "encoder_remaining_heads": [[1, 4], [], [0, 2, 5], [3]],
            "encoder_num_buckets": 32,
            "encoder_max_distance": 40,
        }
    else:
        values |= {"encoder_num_heads": [2, 0, 3, 1], "encoder_head_dim": 8}
    return values | changes


def heads_of(config: dict[str, Any]) -> tuple[int, list[list[int]]]:
    """Heads of the teacher, and the numbers of those that each layer keeps (the first ones, where none are given)."""
    if "encoder_remaining_heads" in config:
        return config["encoder_total_num_heads"][0], config["encoder_remaining_heads"]
    return config["encoder_embed_dim"] // config["encoder_head_dim"], [
        list(range(number)) for number in config["encoder_num_heads"]
    ]


def random_state(config: dict[str, Any], seed: int = 0) -> State:
    """Weights for a configuration, none of them at a trivial value."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def linear(name: str, outputs: int, inputs: int, *kernel: int, bias: bool = True) -> None:
        scale = max(1, inputs * math.prod(kernel)) ** -0.5
        state[f"{name}.weight"] = torch.randn(outputs, inputs, *kernel, generator=generator) * scale
        if bias:
            state[f"{name}.bias"] = torch.rand(outputs, generator=generator) - 0.5

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.rand(width, generator=generator) - 0.5

    width, inputs = config["encoder_embed_dim"], 1
    for number, (channels, kernel, _) in enumerate(config["extractor_conv_layer_config"]):
        place = f"feature_extractor.conv_layers.{number}"
        linear(f"{place}.conv", channels, inputs, kernel, bias=config["extractor_conv_bias"])
        if number == 0 or config["extractor_mode"] == "layer_norm":
            norm(f"{place}.layer_norm", channels)
        inputs = channels
    state["feature_extractor.dummy_weight"] = torch.rand(inputs, generator=generator) + 0.3
    norm("encoder.feature_projection.layer_norm", inputs)
    linear("encoder.feature_projection.projection", width, inputs)
    kernel = config["encoder_pos_conv_kernel"]
    place = "encoder.transformer.pos_conv_embed.conv"
    linear(place, width, width // config["encoder_pos_conv_groups"], kernel)
    state[f"{place}.weight_v"] = state.pop(f"{place}.weight")
    state[f"{place}.weight_g"] = torch.rand(1, 1, kernel, generator=generator) + 0.5
    norm("encoder.transformer.layer_norm", width)
    total, kept = heads_of(config)
    size = width // total
    for number in range(config["encoder_num_layers"]):
        place = f"encoder.transformer.layers.{number}"
        norm(f"{place}.layer_norm", width)
        norm(f"{place}.final_layer_norm", width)
        if config["encoder_use_attention"][number]:
            inner = len(kept[number]) * size
            for name in ("q_proj", "k_proj", "v_proj"):
                linear(f"{place}.attention.{name}", inner, width)
            linear(f"{place}.attention.out_proj", width, inner)
            if "encoder_num_buckets" in config:
                linear(f"{place}.attention.gru_rel_pos_linear", 8, size)
                const = torch.randn(1, total, 1, 1, generator=generator)
                state[f"{place}.attention.gru_rel_pos_const"] = const
                if number == 0:
                    table = torch.randn(config["encoder_num_buckets"], total, generator=generator)
                    state[f"{place}.attention.rel_attn_embed.weight"] = table
        if config["encoder_use_feed_forward"][number]:
            units = config["encoder_ff_interm_features"][number]
            linear(f"{place}.feed_forward.intermediate_dense", units, width)
            linear(f"{place}.feed_forward.output_dense", width, units)
    return state


def hidden_states(
    state: State, config: dict[str, Any], waveforms: Tensor, lengths: Tensor | None = None
) -> list[Tensor]:
    """h_0 (the feature projection), then every layer's output.

    With lengths, only what is no padding is normalized, frames of padding are zeros where the transformer begins, and
    no frame attends to them.
    """
    if config["normalize_waveform"]:
        full = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
        parts = [F.layer_norm(row[:length], (length,)) for row, length in zip(waveforms, full, strict=True)]
        waveforms = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    x = waveforms[:, None]
    for number, (channels, _, stride) in enumerate(config["extractor_conv_layer_config"]):
        place = f"feature_extractor.conv_layers.{number}"
        x = F.conv1d(x, state[f"{place}.conv.weight"], state.get(f"{place}.conv.bias"), stride)
        if config["extractor_mode"] == "layer_norm":
            x = layer_norm(state, f"{place}.layer_norm", x.transpose(1, 2)).transpose(1, 2)
        elif number == 0:
            x = F.group_norm(x, channels, state[f"{place}.layer_norm.weight"], state[f"{place}.layer_norm.bias"])
        x = F.gelu(x)
    valid = torch.ones(len(x), x.shape[2], dtype=torch.bool)
    if lengths is not None:
        for kernel, stride in KERNELS:
            lengths = (lengths - kernel) // stride + 1
        valid = torch.arange(x.shape[2]) < lengths[:, None]
    x = x.transpose(1, 2) * state.get("feature_extractor.dummy_weight", torch.ones(1))
    x = linear(
        state, "encoder.feature_projection.projection", layer_norm(state, "encoder.feature_projection.layer_norm", x)
    )
    states = [x]
    x = x * valid[..., None]
    x = x + positional_convolution(state, config, x)
    if not config["encoder_layer_norm_first"]:
        x = layer_norm(state, "encoder.transformer.layer_norm", x)
    bias = position_bias(state, config, x.shape[1])
    for number in range(config["encoder_num_layers"]):
        x = layer(state, config, number, x, bias, valid)
        states.append(x)
    return states


def layer(state: State, config: dict[str, Any], number: int, x: Tensor, bias: Tensor | None, valid: Tensor) -> Tensor:
    place, before = f"encoder.transformer.layers.{number}", config["encoder_layer_norm_first"]

    def feed_forward(x: Tensor) -> Tensor:
        inner = F.gelu(linear(state, f"{place}.feed_forward.intermediate_dense", x))
        return linear(state, f"{place}.feed_forward.output_dense", inner)

    if config["encoder_use_attention"][number]:
        inputs = layer_norm(state, f"{place}.layer_norm", x) if before else x
        x = x + attention(state, config, number, inputs, bias, valid)
    if before:
        feeds = config["encoder_use_feed_forward"][number]
        return x + feed_forward(layer_norm(state, f"{place}.final_layer_norm", x)) if feeds else x
    x = layer_norm(state, f"{place}.layer_norm", x)
    if config["encoder_use_feed_forward"][number]:
        x = x + feed_forward(x)
    return layer_norm(state, f"{place}.final_layer_norm", x)


def attention(
    state: State, config: dict[str, Any], number: int, x: Tensor, bias: Tensor | None, valid: Tensor
) -> Tensor:
    """Head by head, with a written-out softmax."""
    place = f"encoder.transformer.layers.{number}.attention"
    total, kept = heads_of(config)
    size = x.shape[-1] // total
    query, key, value = (linear(state, f"{place}.{name}", x) for name in ("q_proj", "k_proj", "v_proj"))
    outputs = [torch.zeros(*x.shape[:2], 0)]
    for index, head in enumerate(kept[number]):
        mine = slice(index * size, (index + 1) * size)
        scores = query[..., mine] @ key[..., mine].transpose(1, 2) / math.sqrt(size)
        if bias is not None:
            slots = linear(state, f"{place}.gru_rel_pos_linear", x[..., head * size : (head + 1) * size])
            update, reset = slots[..., :4].sum(-1).sigmoid(), slots[..., 4:].sum(-1).sigmoid()
            const = state[f"{place}.gru_rel_pos_const"][0, head, 0, 0]
            scores = scores + (update * (reset * const - 1) + 2)[..., None] * bias[head]
        scores = scores.masked_fill(~valid[:, None], -torch.inf)
        outputs.append(scores.softmax(-1) @ value[..., mine])
    return linear(state, f"{place}.out_proj", torch.cat(outputs, -1))


def position_bias(state: State, config: dict[str, Any], frames: int) -> Tensor | None:
    """(H, T, T), pair by pair; none where the first layer, which holds it, has no attention."""
    table = state.get("encoder.transformer.layers.0.attention.rel_attn_embed.weight")
    if table is None:
        return None
    half = config["encoder_num_buckets"] // 2
    exact = half // 2

    def bucket(offset: int) -> int:
        distance = abs(offset)
        if distance >= exact:
            far = math.log(distance / exact) / math.log(config["encoder_max_distance"] / exact) * (half - exact)
            distance = min(exact + int(far), half - 1)
        return distance + half * (offset > 0)

    buckets = torch.tensor([[bucket(k - q) for k in range(frames)] for q in range(frames)])
    return table[buckets].permute(2, 0, 1)


def positional_convolution(state: State, config: dict[str, Any], x: Tensor) -> Tensor:
    place = "encoder.transformer.pos_conv_embed.conv"
    direction = state[f"{place}.weight_v"]
    weight = direction * state[f"{place}.weight_g"] / direction.pow(2).sum((0, 1), keepdim=True).sqrt()
    kernel, groups = config["encoder_pos_conv_kernel"], config["encoder_pos_conv_groups"]
    y = F.conv1d(x.transpose(1, 2), weight, state[f"{place}.bias"], padding=kernel // 2, groups=groups)
    return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / torch.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]
