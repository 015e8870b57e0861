"""The layout of DPHuBERT and DiariZen both ways, and TorchAudio's plain state dicts, against an independent reading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from skill_speech import Encoder, EncoderConfig, InputError, load_encoder
from skill_speech.checkpoints import read_checkpoint, save_torchaudio
from skill_speech.checkpoints.diarizen import PUBLISHED
from skill_speech.encoder import LayerConfig, hubert_config, wavlm_config
from skill_speech.kernels import attach_kernels
from skill_speech.pruning import attach_gates, find_gates, prune
from tests.refusals import refused
from tests.torchaudio_reference import KERNELS, hidden_states, random_state, student_config
from tests.transformers_models import LARGE_STYLE, TINY, build

TOLERANCE = 1e-5
KINDS = [(False, False), (False, True), (True, False), (True, True)]
KIND_NAMES = ["hubert-base", "hubert-large", "wavlm-base", "wavlm-large"]


def waveforms() -> torch.Tensor:
    """A loud one and a quiet one, on which the epsilon of the input's normalization shows."""
    torch.manual_seed(1)
    return torch.randn(2, 4_000) * torch.tensor([[1.0], [0.02]]) + 0.01


def write(path: Path, state: dict[str, torch.Tensor], config: dict[str, Any] | None = None, **more: Any) -> Path:
    torch.save({"state_dict": state} | ({} if config is None else {"config": config}) | more, path)
    return path


def assert_same_function(encoder: Encoder, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    with torch.inference_mode():
        ours, theirs = encoder(waveforms()).layers, hidden_states(state, config, waveforms())
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert float((mine - other).norm() / other.norm()) < TOLERANCE, f"h_{number}"


def uneven_student(wavlm: bool, large: bool) -> Encoder:
    """Ours: two layers without attention or feed-forward, with and without an output bias in their place."""
    torch.manual_seed(2)
    config = (wavlm_config if wavlm else hubert_config)(
        hidden_size=48, num_heads=6, depth=5, units=40, positional_kernel=16, positional_groups=4, feature_scale=True
    )
    shapes = zip(config.convs, (11, 16, 13, 24, 9, 20, 17), strict=True)
    kept = [((1, 4), 13), ((), 40), ((0, 2, 5), 0), ((), 7), (tuple(range(6)), 0)]
    config = config.replace(
        convs=tuple(dataclasses.replace(conv, channels=channels) for conv, channels in shapes),
        layers=tuple(LayerConfig(*layer) for layer in kept),
        input_norm_eps=1e-5,
    )
    if large:
        config = config.replace(conv_norm="layer", pre_norm=True, conv_bias=not wavlm, input_normalization=True)
    encoder = Encoder(config)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "norm" in name or "scale" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias") or "position_" in name:
                weight.uniform_(-0.3, 0.3)
        encoder.layers[3].attention.output.bias.zero_()
        encoder.layers[4].feed_forward.output.bias.zero_()
    return encoder.eval()


@pytest.mark.parametrize(("wavlm", "large"), KINDS, ids=KIND_NAMES)
def test_a_pruned_file_is_read_as_the_function_it_describes(wavlm, large, tmp_path):
    config = student_config(wavlm, large)
    state = random_state(config)
    checkpoint = read_checkpoint(write(tmp_path / "student.pth", state, config))
    assert checkpoint.format == "DPHuBERT"
    assert checkpoint.assumed == ()
    assert_same_function(checkpoint.encoder, state, config)


@pytest.mark.parametrize(("wavlm", "large"), KINDS, ids=KIND_NAMES)
def test_a_written_student_is_the_same_function_in_the_layout(wavlm, large, tmp_path):
    encoder = attach_kernels(uneven_student(wavlm, large))
    save_torchaudio(encoder, tmp_path / "student.pth")
    content = torch.load(tmp_path / "student.pth", weights_only=True)
    assert_same_function(encoder, content["state_dict"], content["config"])


@pytest.mark.parametrize(("wavlm", "large"), KINDS, ids=KIND_NAMES)
def test_an_uneven_student_comes_back_to_the_bit(wavlm, large, tmp_path):
    encoder = attach_kernels(uneven_student(wavlm, large))
    save_torchaudio(encoder, tmp_path / "student.pth")
    again = load_encoder(tmp_path / "student.pth")
    assert again.config == encoder.config
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())
    with torch.inference_mode():
        for mine, other in zip(again(waveforms()).layers, encoder(waveforms()).layers, strict=True):
            assert torch.equal(mine, other)


def test_absent_sublayers_are_left_out_and_biased_ones_are_kept(tmp_path):
    """Their absent sublayer adds nothing, and what surgery leaves of ours is an output bias."""
    save_torchaudio(uneven_student(wavlm=True, large=False), tmp_path / "student.pth")
    config = torch.load(tmp_path / "student.pth", weights_only=True)["config"]
    assert config["encoder_use_attention"] == [True, True, True, False, True]
    assert config["encoder_remaining_heads"][1] == []
    assert config["encoder_use_feed_forward"] == [True, True, True, True, False]


def test_a_student_out_of_surgery_round_trips(tmp_path):
    gated = attach_gates(uneven_student(wavlm=True, large=True))
    with torch.no_grad():
        for gate in find_gates(gated):
            gate.module.log_alpha.normal_(0.5, 2)
    student = attach_kernels(prune(gated))
    save_torchaudio(student, tmp_path / "student.pth")
    again = load_encoder(tmp_path / "student.pth")
    assert again.config == student.config
    with torch.inference_mode():
        assert torch.equal(again(waveforms()).last_hidden_state_BTD, student(waveforms()).last_hidden_state_BTD)


def test_the_position_bias_goes_with_the_first_layer(tmp_path):
    """DPHuBERT keeps WavLM's position bias in layer 1: without its attention no layer has any."""
    config = student_config(wavlm=True, large=False, encoder_use_attention=[False, False, True, True])
    config["encoder_remaining_heads"][0] = []
    state = random_state(config)
    encoder = load_encoder(write(tmp_path / "student.pth", state, config))
    assert encoder.config.relative_buckets == 0
    assert_same_function(encoder, state, config)


def test_a_scale_of_ones_is_no_scale(tmp_path):
    config = student_config(wavlm=False, large=False)
    state = random_state(config)
    state["feature_extractor.dummy_weight"] = torch.ones(17)
    assert not load_encoder(write(tmp_path / "teacher.pth", state, config)).config.feature_scale


# DPHuBERT's stage 1, with the gates still on.


def gate_values(log_alpha: torch.Tensor) -> torch.Tensor:
    """DPHuBERT's gates in evaluation (Louizos et al. 2018, with its slope of 0.8)."""
    expected_zeros = len(log_alpha) - torch.sigmoid(log_alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))).sum()
    soft = torch.sigmoid(log_alpha / (2 / 3) * 0.8)
    soft[soft.argsort()[: round(float(expected_zeros))]] = 0
    return soft


def gated_teacher(wavlm: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    config = student_config(
        wavlm,
        large=False,
        encoder_use_attention=[True] * 4,
        encoder_use_feed_forward=[True] * 4,
        encoder_ff_interm_features=[20] * 4,
        extractor_prune_conv_channels=True,
        encoder_prune_attention_heads=True,
        encoder_prune_feed_forward_intermediate=True,
    )
    if wavlm:
        config["encoder_remaining_heads"] = [list(range(6)) for _ in range(4)]
    else:
        config["encoder_num_heads"] = [6] * 4
    state = random_state(config)
    torch.manual_seed(4)
    for number, (channels, *_) in enumerate(config["extractor_conv_layer_config"]):
        state[f"feature_extractor.conv_layers.{number}.hard_concrete.log_alpha"] = torch.randn(channels) * 2 + 1
    for number in range(4):
        place = f"encoder.transformer.layers.{number}"
        state[f"{place}.attention.hard_concrete_for_heads.log_alpha"] = torch.randn(6) * 2
        state[f"{place}.feed_forward.hard_concrete_for_intermediate.log_alpha"] = torch.randn(20) * 2
    return state, config


def pruned_by_hand(
    state: dict[str, torch.Tensor], config: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Surgery as DPHuBERT's paper describes it, on the file's own names."""
    gates = {name: gate_values(tensor) for name, tensor in state.items() if name.endswith("log_alpha")}
    state = {name: tensor.clone() for name, tensor in state.items() if not name.endswith("log_alpha")}
    config, before, factors = dict(config), torch.arange(1), torch.ones(1)
    shapes = []
    for number, (_, kernel, stride) in enumerate(config["extractor_conv_layer_config"]):
        place = f"feature_extractor.conv_layers.{number}"
        values = gates[f"{place}.hard_concrete.log_alpha"]
        open_ = values.nonzero().flatten()
        state[f"{place}.conv.weight"] = state[f"{place}.conv.weight"][open_][:, before] * factors[:, None]
        for kind in ("weight", "bias"):
            if f"{place}.layer_norm.{kind}" in state:
                state[f"{place}.layer_norm.{kind}"] = state[f"{place}.layer_norm.{kind}"][open_]
        before, factors = open_, values[open_]
        shapes.append((len(open_), kernel, stride))
    state["feature_extractor.dummy_weight"] = state["feature_extractor.dummy_weight"][before] * factors
    for kind in ("layer_norm.weight", "layer_norm.bias"):
        state[f"encoder.feature_projection.{kind}"] = state[f"encoder.feature_projection.{kind}"][before]
    projection = "encoder.feature_projection.projection.weight"
    state[projection] = state[projection][:, before]
    heads, units = [], []
    for number in range(4):
        place = f"encoder.transformer.layers.{number}"
        values = gates[f"{place}.attention.hard_concrete_for_heads.log_alpha"]
        heads.append(values.nonzero().flatten().tolist())
        rows = torch.tensor([head * 8 + row for head in heads[-1] for row in range(8)], dtype=torch.long)
        for name in ("q_proj", "k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                state[f"{place}.attention.{name}.{kind}"] = state[f"{place}.attention.{name}.{kind}"][rows]
        output = f"{place}.attention.out_proj.weight"
        state[output] = (state[output] * values.repeat_interleave(8))[:, rows]
        values = gates[f"{place}.feed_forward.hard_concrete_for_intermediate.log_alpha"]
        open_ = values.nonzero().flatten()
        units.append(len(open_))
        for kind in ("weight", "bias"):
            name = f"{place}.feed_forward.intermediate_dense.{kind}"
            state[name] = state[name][open_]
        output = f"{place}.feed_forward.output_dense.weight"
        state[output] = (state[output] * values)[:, open_]
    config |= {"extractor_conv_layer_config": shapes, "encoder_ff_interm_features": units}
    if "encoder_remaining_heads" in config:
        config["encoder_remaining_heads"] = heads
    else:
        config["encoder_num_heads"] = [len(kept) for kept in heads]
    return state, config


@pytest.mark.parametrize("wavlm", [False, True], ids=["hubert", "wavlm"])
def test_a_gated_file_is_read_as_the_student_it_stands_for(wavlm, tmp_path):
    state, config = gated_teacher(wavlm)
    checkpoint = read_checkpoint(write(tmp_path / "gated.pth", state, config))
    assert "stage 1" in checkpoint.format
    assert not find_gates(checkpoint.encoder)
    assert_same_function(checkpoint.encoder, *pruned_by_hand(state, config))


def test_a_training_checkpoint_gives_its_student(tmp_path):
    """Lightning's file of DPHuBERT's stage 1: student and teacher side by side, and no configuration."""
    state, config = gated_teacher(wavlm=True)
    names = {f"student_model.{name}": tensor for name, tensor in state.items()}
    names |= {f"teacher_model.{name}": tensor for name, tensor in random_state(config, seed=9).items()}
    path = write(tmp_path / "last.ckpt", names | {"distill_linear_projs.0.weight": torch.ones(2)}, epoch=3)
    checkpoint = read_checkpoint(path)
    assert checkpoint.assumed
    pruned, config = pruned_by_hand(state, config)
    # The distance up to which the position bias reaches is the one thing that the shapes do not tell.
    assert_same_function(checkpoint.encoder, pruned, config | {"encoder_max_distance": 800})


def test_gates_on_whole_sublayers_are_folded(tmp_path):
    config = student_config(wavlm=True, large=True)
    state = random_state(config)
    expected = {name: tensor.clone() for name, tensor in state.items()}
    closed, half_open = torch.tensor([-4.0]), torch.tensor([0.5])
    for layer, sublayer, output, log_alpha in (
        (2, "attention", "out_proj", half_open),
        (0, "feed_forward", "output_dense", half_open),
        (3, "attention", "out_proj", closed),
        (1, "feed_forward", "output_dense", closed),
    ):
        place = f"encoder.transformer.layers.{layer}.{sublayer}"
        state[f"{place}.hard_concrete_for_layer.log_alpha"] = log_alpha
        for kind in ("weight", "bias"):
            expected[f"{place}.{output}.{kind}"] *= gate_values(log_alpha.clone())
    path = write(tmp_path / "gated.pth", state, config | {"encoder_prune_attention_layer": True})
    encoder = load_encoder(path)
    assert encoder.config.layers[3].heads == ()
    assert encoder.config.layers[1].units == 0
    assert_same_function(encoder, expected, config)


def test_gates_of_another_distribution_are_refused(tmp_path):
    state, config = gated_teacher(wavlm=True)
    path = write(tmp_path / "gated.pth", state, config | {"temperature": 0.33})
    with pytest.raises(InputError, match="another temperature"):
        load_encoder(path)


# DiariZen.


def diarizen_config(name: str) -> dict[str, Any]:
    """DiariZen's published WavLM students, pruned by 80 %; the channels are its own too."""
    large = "large" in name
    channels = (512, 153, 224, 255, 302, 368, 211) if large else (90, 161, 173, 181, 351, 155, 137)
    heads, units = PUBLISHED[name]
    depth, total = (24, 16) if large else (12, 12)
    return student_config(
        True,
        large,
        extractor_conv_layer_config=[(number, *shape) for number, shape in zip(channels, KERNELS, strict=True)],
        encoder_embed_dim=total * 64,
        encoder_pos_conv_kernel=128,
        encoder_pos_conv_groups=16,
        encoder_num_layers=depth,
        encoder_use_attention=[bool(kept) for kept in heads],
        encoder_use_feed_forward=[True] * depth,
        encoder_total_num_heads=[total] * depth,
        encoder_remaining_heads=heads,
        encoder_num_buckets=320,
        encoder_max_distance=800,
        encoder_ff_interm_features=units,
        use_layerwise_prune=False,
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wavlm_base_s80_md", 18.8), pytest.param("wavlm_large_s80_md", 63.3, marks=pytest.mark.slow)],
)
def test_diarizens_students_load_with_and_without_their_configuration(name, millions, tmp_path):
    config = diarizen_config(name)
    state = random_state(config)
    encoder = load_encoder(write(tmp_path / "student.bin", state, config))
    # Their count, rounded by them, is of parameters in a table of results.
    assert encoder.num_parameters() / 1e6 == pytest.approx(millions, rel=0.005)
    assert_same_function(encoder, state, config)

    # What is on the hub is the whole diarization model, with neither a configuration nor the numbers of the heads.
    whole = {f"wavlm_model.{name}": tensor for name, tensor in state.items()}
    torch.save(whole | {"weight_sum.weight": torch.ones(1, 13)}, tmp_path / "pytorch_model.bin")
    checkpoint = read_checkpoint(tmp_path / "pytorch_model.bin")
    assert checkpoint.format == "DiariZen"
    assert any(name in sentence for sentence in checkpoint.assumed)
    assert_same_function(checkpoint.encoder, state, config)


def test_kept_heads_that_nothing_tells_are_refused(tmp_path):
    state = random_state(student_config(wavlm=True, large=False))
    torch.save(state, tmp_path / "student.pth")
    with pytest.raises(InputError, match="only a configuration says which heads of WavLM were"):
        load_encoder(tmp_path / "student.pth")


# TorchAudio's own state dicts, made of Transformers' models: the two differ in the prefixes of their names only.

TORCHAUDIO = {
    "hubert-base": ("Hubert", {"hidden_size": 128, "num_attention_heads": 2}),
    "wav2vec2-large": ("Wav2Vec2", {"hidden_size": 128, "num_attention_heads": 2} | LARGE_STYLE),
    "wavlm-base": ("WavLM", {"num_buckets": 32, "max_bucket_distance": 800}),
    "wavlm-large": ("WavLM", {"num_buckets": 32, "max_bucket_distance": 800} | LARGE_STYLE | {"conv_bias": False}),
}


def torchaudio_weights(model: Any, wavlm: bool) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("encoder."):
            name = name.replace("encoder.", "encoder.transformer.", 1)
        elif name.startswith("feature_projection."):
            name = f"encoder.{name}"
        if name != "masked_spec_embed":
            weights[name.replace("parametrizations.weight.original0", "weight_g")] = tensor
    weights = {
        name.replace("parametrizations.weight.original1", "weight_v"): tensor for name, tensor in weights.items()
    }
    for number in range(model.config.num_hidden_layers if wavlm else 0):
        place = f"encoder.transformer.layers.{number}.attention"
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"{place}.{name}.{kind}") for name in ("q_proj", "k_proj", "v_proj")]
            weights[f"{place}.attention.in_proj_{kind}"] = torch.cat(parts)
            weights[f"{place}.attention.out_proj.{kind}"] = weights.pop(f"{place}.out_proj.{kind}")
    return weights


@pytest.mark.parametrize("variant", TORCHAUDIO)
@pytest.mark.parametrize("prefix", ["", "model.", "wav2vec2."], ids=["bare", "bundle", "pre-training"])
def test_a_plain_state_dict_is_read_by_its_shapes(variant, prefix, tmp_path):
    kind, overrides = TORCHAUDIO[variant]
    model = build(kind, TINY | overrides)
    weights = {
        f"{prefix}{name}": tensor for name, tensor in torchaudio_weights(model, wavlm="wavlm" in variant).items()
    }
    if prefix == "wav2vec2.":
        weights |= {"mask_generator.mask_embedding": torch.ones(128), "logit_generator.label_embeddings": torch.ones(5)}
    torch.save(weights, tmp_path / "bundle.pth")
    checkpoint = read_checkpoint(tmp_path / "bundle.pth")
    assert checkpoint.format == "TorchAudio"
    large = "large" in variant
    assert checkpoint.encoder.config.input_normalization == large
    inputs = F.layer_norm(waveforms(), (4_000,)) if large else waveforms()
    with torch.inference_mode():
        ours, theirs = checkpoint.encoder(waveforms()), model(inputs, output_hidden_states=True)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert float((mine - other).norm() / other.norm()) < TOLERANCE


def test_a_state_dict_in_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = build("WavLM", TINY | {"num_buckets": 32})
    save_file(torchaudio_weights(model, wavlm=True), tmp_path / "wavlm.safetensors")
    assert load_encoder(tmp_path / "wavlm.safetensors").config.num_heads == 4


def test_an_unknown_number_of_heads_is_refused(tmp_path):
    model = build("Hubert", TINY)  # 48 wide: no number of heads of 64
    torch.save(torchaudio_weights(model, wavlm=False), tmp_path / "hubert.pth")
    with pytest.raises(InputError, match="how many heads a hidden size of 48 has is not known"):
        load_encoder(tmp_path / "hubert.pth")


# Files that do not fit.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_embed_dim": None}, "lacks encoder_embed_dim"),
        ({"encoder_embed_dim": "48"}, "encoder_embed_dim in its configuration is no int"),
        ({"encoder_embed_dim": 96}, "the layer norms of layer 0 have a different width from 96"),
        ({"encoder_num_layers": 5}, "5 layers, and there are no weights for the last one"),
        ({"encoder_num_layers": 10**9}, "encoder_num_layers is 1000000000; it must be"),
        ({"encoder_num_layers": 3}, "is not one bool for each layer"),
        ({"encoder_ff_interm_features": [13, 40, 0]}, "is not one int for each layer"),
        ({"encoder_ff_interm_features": [13, 40, 0, 10**6]}, "has the shape"),
        ({"encoder_ff_interm_features": [13, 40, 0, 10**12]}, "units of layer 4 is 1000000000000; it must be"),
        ({"encoder_remaining_heads": [[1, 4], [], [0, 2, 9], [3]]}, "distinct, ascending whole numbers from 0 to 5"),
        ({"encoder_remaining_heads": [[1, 4], [], [0, 2, "5"], [3]]}, "does not describe a valid encoder"),
        ({"encoder_use_attention": [True, True, True, True]}, "the weight encoder.transformer.layers.1.attention"),
        ({"encoder_use_attention": [True, False, False, True]}, "has the shape"),
        ({"extractor_mode": "batch_norm"}, "conv_norm is 'batch'"),
        ({"extractor_mode": "layer_norm"}, "the weight feature_extractor.conv_layers.1.layer_norm.weight is missing"),
        ({"extractor_conv_layer_config": [(11, 10)]}, "is not three numbers for each"),
        ({"encoder_pos_conv_groups": 0}, "does not describe a valid encoder"),
        ({"encoder_total_num_heads": [0] * 4}, "does not describe a valid encoder"),
        ({"encoder_max_distance": 8}, "32 buckets of a position bias do not cover a distance of 8"),
        ({"encoder_dropout": float("nan")}, "encoder_dropout in its configuration is no float"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(changes, message, tmp_path):
    config = student_config(wavlm=True, large=False)
    state = random_state(config)
    assert message in refused(write(tmp_path / "student.pth", state, config | changes))


def test_a_missing_weight_and_a_wrong_shape_are_named(tmp_path):
    config = student_config(wavlm=True, large=False)
    state = random_state(config)
    name = "encoder.transformer.layers.2.attention.v_proj.weight"
    path = tmp_path / "student.pth"
    less = {other: tensor for other, tensor in state.items() if other != name}
    assert f"the weight {name} is missing" in refused(write(path, less, config))
    assert "has the shape (24, 47)" in refused(write(path, state | {name: torch.ones(24, 47)}, config))
    assert "is not a tensor" in refused(write(path, state | {name: "tensor"}, config))
    assert "numbers that are not finite" in refused(write(path, state | {name: state[name] / 0}, config))
    assert "torch.int8, not floating point" in refused(write(path, state | {name: state[name].to(torch.int8)}, config))
    assert "gru_rel_pos_const has 5 numbers for 6 heads" in refused(
        write(
            path, state | {"encoder.transformer.layers.0.attention.gru_rel_pos_const": torch.ones(1, 5, 1, 1)}, config
        )
    )
    assert "positional convolution have the shapes" in refused(
        write(path, state | {"encoder.transformer.pos_conv_embed.conv.weight_g": torch.ones(1)}, config)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positional_affine": True}, "another positional convolution"),
        ({"feature_norm": False}, "no norm before the feature projection"),
        ({"activation": "relu"}, "the activation relu"),
        ({"norm_eps": 1e-6}, "an epsilon of 1e-06"),
    ],
)
def test_what_the_layout_cannot_express_is_not_written(changes, message, tmp_path):
    config: EncoderConfig = uneven_student(wavlm=False, large=False).config.replace(**changes)
    with pytest.raises(InputError, match=message):
        save_torchaudio(Encoder(config), tmp_path / "student.pth")
    assert not (tmp_path / "student.pth").exists()


def test_a_gated_student_is_not_written_as_if_it_had_no_gates(tmp_path):
    with pytest.raises(InputError, match="prune it first"):
        save_torchaudio(attach_gates(uneven_student(wavlm=False, large=False)), tmp_path / "student.pth")


def test_a_configuration_that_contains_itself_is_refused(tmp_path):
    config = student_config(wavlm=True, large=False)
    config["again"] = config
    assert "nested too deeply" in refused(write(tmp_path / "student.pth", random_state(config), config))
