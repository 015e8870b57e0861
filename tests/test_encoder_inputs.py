"""What an encoder takes is the same whatever it comes in, and what cannot be meant is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from skill_speech.encoder import Encoder, EncoderOutput
from skill_speech.exporting.travel.configuration_skill_speech import SkillSpeechConfig
from skill_speech.exporting.travel.modeling_skill_speech import SkillSpeechForCTC, SkillSpeechModel
from skill_speech.kernels import optimize
from tests.exported_models import pruned_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

LONG, SHORT = (torch.randn(size, generator=torch.Generator().manual_seed(size)) / 5 for size in (4_000, 2_500))
PADDED = torch.nn.utils.rnn.pad_sequence([LONG, SHORT], batch_first=True)
LENGTHS = torch.tensor([4_000, 2_500])
KINDS: dict[str, Callable[[Encoder], Any]] = {
    "encoder": lambda encoder: encoder,
    "optimized": lambda encoder: optimize(encoder, "float32"),
}


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param](pruned_encoder("wavlm"))


@torch.no_grad()
def same(made: EncoderOutput, wanted: EncoderOutput) -> None:
    assert made.lengths_B.tolist() == wanted.lengths_B.tolist()
    for one, other in zip(made.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(one, other)


def test_one_utterance_in_any_form(encoder: Any) -> None:
    wanted = encoder(LONG[None])
    for given in (LONG, LONG.numpy(), LONG.numpy()[None], LONG.tolist(), [LONG.tolist()], [LONG], (LONG.numpy(),)):
        same(encoder(given), wanted)
    with_length = encoder(LONG[None], torch.tensor([3_000]))
    for length in ([3_000], 3_000, np.array([3_000]), np.int64(3_000), torch.tensor(3_000, dtype=torch.int32)):
        same(encoder(LONG, length), with_length)


def test_several_utterances_in_any_form(encoder: Any) -> None:
    wanted = encoder(PADDED, LENGTHS)
    for waveforms in (PADDED, PADDED.numpy(), PADDED.tolist(), [LONG, SHORT], [LONG.numpy(), SHORT.numpy()]):
        for lengths in (LENGTHS, LENGTHS.tolist(), LENGTHS.numpy()):
            same(encoder(waveforms, lengths), wanted)
    same(encoder([LONG, SHORT]), wanted)  # a list knows how long its utterances are
    same(encoder([LONG, LONG]), encoder(torch.stack([LONG, LONG])))


def test_float64_becomes_the_type_of_the_weights(encoder: Any) -> None:
    same(encoder(LONG.double().numpy()), encoder(LONG[None]))


REFUSED: list[tuple[Any, Any, str]] = [
    (PADDED, [4_000, 4_001], "the length of utterance 1 is 4001; its waveform has 4000 samples"),
    ([LONG, SHORT], [4_000, 2_501], "the length of utterance 1 is 2501; its waveform has 2500 samples"),
    (LONG, 10**12, "the length of utterance 0 is 1000000000000; its waveform has 4000 samples"),
    (LONG[None], [4_000, 4_000], "2 lengths are given for 1 utterances; give one for each"),
    (PADDED, [4_000], "1 lengths are given for 2 utterances"),
    (PADDED, 4_000, "1 lengths are given for 2 utterances"),
    (PADDED, [[4_000, 2_500]], "1×2 lengths are given for 2 utterances"),
    (PADDED, [4_000.0, 2_500.0], "lengths are torch.float32; give whole numbers of samples"),
    (PADDED, [True, True], "lengths are torch.bool; give whole numbers"),
    (PADDED, ["a", "b"], "lengths cannot be converted to a tensor: "),
    (PADDED, [4_000, 399], "an utterance has 399 samples; the encoder needs 400"),
    (PADDED, [4_000, 0], "an utterance has 0 samples; the encoder needs 400"),
    (PADDED, [4_000, -5], "an utterance has -5 samples; the encoder needs 400"),
    (LONG[:399], None, "an utterance has 399 samples; the encoder needs 400"),
    ([LONG, LONG[:399]], None, "an utterance has 399 samples; the encoder needs 400"),
    ([], None, "an utterance has 0 samples; the encoder needs 400"),
    (torch.empty(1, 0), None, "an utterance has 0 samples; the encoder needs 400"),
    (torch.empty(0, 4_000), None, "waveforms contain no utterance"),
    (torch.empty(0, 4_000), torch.empty(0, dtype=torch.long), "waveforms contain no utterance"),
    (torch.zeros(2, 1, 4_000), None, "waveforms have 3 dimensions; give (utterances, samples) or (samples,)"),
    (torch.tensor(0.5), None, "waveforms have 0 dimensions; give"),
    ([LONG[None], SHORT[None]], None, "utterance 0 has 2 dimensions; give its samples, of one channel"),
    (np.zeros(4_000, np.int16), None, "waveforms are int16; give floating-point samples between -1 and 1"),
    (np.zeros((1, 4_000), bool), None, "waveforms are bool; give floating-point samples"),
    ([0] * 4_000, None, "waveforms are int64; give floating-point samples"),
    ([np.zeros(4_000, np.int16)], None, "waveforms are int16; give floating-point samples"),
    (PADDED.to(torch.complex64), None, "waveforms are complex64; give floating-point samples"),
    ("speech.wav", None, "waveforms cannot be converted to a tensor: "),
    (["speech.wav"], None, "waveforms cannot be converted to a tensor: "),
    (None, None, "waveforms cannot be converted to a tensor: "),
    ([LONG, None], None, "waveforms cannot be converted to a tensor: "),
]


@pytest.mark.parametrize(("waveforms", "lengths", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(waveforms: Any, lengths: Any, message: str, encoder: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder(waveforms, lengths)
    if isinstance(encoder, Encoder):
        for part in (encoder.features, encoder.frontend):
            with pytest.raises(ValueError, match=re.escape(message)):
                part(waveforms, lengths)


@pytest.fixture(scope="module")
def transformers_model() -> SkillSpeechModel:
    torch.manual_seed(0)
    return SkillSpeechModel(SkillSpeechConfig(**pruned_encoder("wavlm").config.to_dict())).eval()


def mask(*lengths: int) -> Tensor:
    return (torch.arange(4_000) < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
def test_the_transformers_model_takes_the_same_forms(transformers_model: SkillSpeechModel) -> None:
    states = [
        transformers_model(waveforms, given).last_hidden_state
        for waveforms, given in (
            (PADDED, mask(4_000, 2_500)),
            (PADDED.numpy(), mask(4_000, 2_500).numpy()),
            (PADDED.tolist(), mask(4_000, 2_500).tolist()),
            ([LONG, SHORT.numpy()], None),
            (PADDED.double(), mask(4_000, 2_500).bool()),
        )
    ]
    assert all(torch.equal(states[0], state) for state in states)
    one = transformers_model(LONG, mask(3_000)[0]).last_hidden_state
    assert torch.equal(one, transformers_model(LONG[None], mask(3_000)).last_hidden_state)


@pytest.mark.parametrize(
    ("waveforms", "given", "message"),
    [
        (PADDED, mask(4_000), "attention_mask is (1, 4000); the waveforms are (2, 4000)"),
        (PADDED, mask(4_000, 2_500)[:, :3_000], "attention_mask is (2, 3000); the waveforms are (2, 4000)"),
        (PADDED, mask(4_000, 2_500).flip(1), "attention_mask has padding before samples"),
        (PADDED, mask(4_000, 399), "an utterance has 399 samples; the encoder needs 400"),
        (PADDED, mask(4_000, 0), "an utterance has 0 samples; the encoder needs 400"),
        (PADDED.short(), None, "waveforms are int16; give floating-point samples"),
        (PADDED[None], None, "waveforms have 3 dimensions"),
    ],
)
def test_the_transformers_model_refuses_the_same(
    waveforms: Tensor, given: Tensor | None, message: str, transformers_model: SkillSpeechModel
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        transformers_model(waveforms, given)
    with pytest.raises(ValueError, match=re.escape(message)):
        SkillSpeechForCTC(transformers_model.config).eval()(waveforms, given, labels=torch.ones(2, 3, dtype=torch.long))


def test_a_head_knows_the_lengths_of_a_list(transformers_model: SkillSpeechModel) -> None:
    model = SkillSpeechForCTC(transformers_model.config).eval()
    labels = torch.ones(2, 3, dtype=torch.long)
    wanted = model(PADDED, mask(4_000, 2_500), labels=labels).loss
    assert torch.equal(model([LONG, SHORT], labels=labels).loss, wanted)
    assert not torch.equal(model(PADDED, labels=labels).loss, wanted)


def test_programs_are_traced_without_looking(transformers_model: SkillSpeechModel) -> None:
    """Nothing of the checks is in a program, which then takes any lengths (tests/test_export_runtimes.py)."""
    program = torch.export.export(pruned_encoder("hubert"), (PADDED, LENGTHS), strict=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in names if "item" in name or "scalar" in name or "assert_async" in name]
    torch.export.export(transformers_model, (PADDED, mask(4_000, 2_500)), strict=False)
