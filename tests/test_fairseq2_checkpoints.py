"""Files of fairseq2 (Omnilingual wav2vec 2.0), against Transformers' models with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from skill_speech import InputError, load_encoder
from skill_speech.checkpoints import read_checkpoint
from tests.fairseq2_files import BESIDE, fairseq2_weights
from tests.refusals import refused
from tests.test_fairseq_checkpoints import assert_equals_transformers
from tests.transformers_models import LARGE_STYLE, TINY, build, save

# Of omniASR_W2V_300M but for depth and feed-forward width: 1024 wide, 16 heads, norms first.
OMNILINGUAL = TINY | LARGE_STYLE | {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 1}
# Heads are not in the weights: of narrow models they are 64 wide.
NARROW = TINY | {"hidden_size": 64, "num_attention_heads": 1}
MODELS: dict[str, dict[str, Any]] = {
    "omnilingual": OMNILINGUAL,
    "pre-norm": NARROW | LARGE_STYLE,
    "post-norm": NARROW,
    "post-norm, layer norms in front": NARROW | {"feat_extract_norm": "layer"},
}
LAYOUTS = {
    "flat": lambda weights: weights,
    "model": lambda weights: {"model": weights},
    "fs2": lambda weights: {"model": weights, "fs2": True},
    "Lightning": lambda weights: {"state_dict": {f"net.encoder.{name}": tensor for name, tensor in weights.items()}},
    "parallel": lambda weights: {"model": {f"module.{name}": tensor for name, tensor in weights.items()}, "args": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", MODELS)
def test_fairseq2s_files_equal_transformers(variant, layout, tmp_path):
    model = build("Wav2Vec2", MODELS[variant])
    torch.save(LAYOUTS[layout](fairseq2_weights(model)), tmp_path / "model.pt")
    checkpoint = read_checkpoint(tmp_path / "model.pt")
    large = model.config.feat_extract_norm == "layer"
    assert (checkpoint.format, checkpoint.encoder.config.family) == ("fairseq2", "wav2vec2")
    assert f"waveforms {'to be' if large else 'not'} normalized" in checkpoint.assumed[2]
    assert f"heads of {64}" in checkpoint.assumed
    assert_equals_transformers(checkpoint.encoder, model, normalize=large)


@pytest.mark.parametrize("beside", BESIDE)
def test_every_state_is_that_of_the_transformers_folder(beside, tmp_path):
    model = build("Wav2Vec2", NARROW | LARGE_STYLE)
    torch.save({"model": fairseq2_weights(model, beside)}, tmp_path / "model.pt")
    ours, known = load_encoder(tmp_path / "model.pt"), load_encoder(save(model, tmp_path / "folder", normalize=True))
    states = known.state_dict()
    assert list(ours.state_dict()) == list(states)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, states[name]), name
    # fairseq2 normalizes with torch's layer_norm, and its configuration of dropout is a name in its code.
    theirs = {"input_norm_eps": 1e-5, **{name: 0.0 for name in vars(ours.config) if name.endswith("_dropout")}}
    assert ours.config == known.config.replace(**theirs)


def test_what_is_not_such_an_encoder_is_refused_in_one_line(tmp_path):
    weights, path = fairseq2_weights(build("Wav2Vec2", NARROW | LARGE_STYLE)), tmp_path / "model.pt"

    def after(drop: str = "-", **more: Any) -> str:
        torch.save({"model": {n: t for n, t in weights.items() if not n.startswith(drop)} | more}, path)
        return refused(path)

    # By what its own file calls it.
    assert "the weight encoder.layers.1.ffn.output_proj.bias is missing" in after(
        "encoder.layers.1.ffn.output_proj.bias"
    )
    assert "match the weight encoder.layers.0.gate.weight" in after(**{"encoder.layers.0.gate.weight": torch.ones(1)})
    assert "only fairseq2 encoders of waveforms" in after("encoder_frontend.feature_extractor.")
    conformer = after(**{"encoder.layers.0.ffn1.inner_proj.weight": torch.ones(3, 3)})
    assert "Conformer layers of fairseq2 are not supported: they would need two feed-forward modules" in conformer
    assert "whose strides are not known" in after("encoder_frontend.feature_extractor.layers.6.")
    torch.save(weights, path)
    with pytest.raises(InputError, match="this model has no adapters for languages"):
        load_encoder(path, target_lang="eng")
