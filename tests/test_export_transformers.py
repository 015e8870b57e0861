"""Exported folders in Transformers: alone on another machine, and fine-tuned on this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

import skill_speech
from skill_speech.checkpoints import load_encoder
from skill_speech.encoder import Encoder
from skill_speech.errors import InputError
from skill_speech.exporting import export
from tests.clean_environment import run_with
from tests.exported_models import BATCHES, SHORTEST, STUDENTS, batch, pruned_encoder, student
from tests.transformers_models import LARGE_STYLE, TINY, VARIANTS, build, save

ON_ANOTHER_MACHINE = """
import sys, torch
from transformers import AutoFeatureExtractor, AutoModel
for name in sys.argv[1:]:
    model, report = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert not any(report.values()), report
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    extractor = AutoFeatureExtractor.from_pretrained(name)
    made = []
    for waveforms, lengths in torch.load("batches.pt"):
        raw = [row[:length].numpy() for row, length in zip(waveforms, lengths)]
        inputs = extractor(raw, sampling_rate=16_000, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.eval()(**inputs, output_hidden_states=True)
        made.append([*output.hidden_states, output.last_hidden_state])
    torch.save(made, f"{name}.pt")
    model.save_pretrained(f"{name}-again")
    again = AutoModel.from_pretrained(f"{name}-again", trust_remote_code=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
"""


def hidden_states(encoder: Encoder, waveforms: Tensor, lengths: Tensor | None) -> list[Tensor]:
    with torch.inference_mode():
        made = encoder(waveforms, lengths)
    return [*made.hidden_states, made.last_hidden_state_BTD]


def folder_of(encoder: Encoder, folder: Path) -> str:
    encoder.save_pretrained(folder / "model")
    export(str(folder / "model"), str(folder / "exported"), format="transformers")
    return str(folder / "exported")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> str:
    """A student with everything in it, exported."""
    return folder_of(student("normalized-and-length-aware"), tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module", autouse=True)
def registered():
    skill_speech.register()


def test_loads_where_only_transformers_and_torch_are_installed(tmp_path):
    encoders = {name: student(name) for name in STUDENTS}
    machine = tmp_path / "machine"
    for name, encoder in encoders.items():
        encoder.save_pretrained(tmp_path / name)
        export(str(tmp_path / name), str(machine / name), format="transformers")
    batches = (*BATCHES, SHORTEST)
    torch.save(batches, machine / "batches.pt")
    run_with(["torch", "transformers"], ON_ANOTHER_MACHINE, machine, *encoders)
    for name, encoder in encoders.items():
        for (waveforms, lengths), made in zip(batches, torch.load(machine / f"{name}.pt"), strict=True):
            wanted = hidden_states(encoder, waveforms, lengths)
            assert len(made) == len(wanted)
            for mine, other in zip(made, wanted, strict=True):
                assert float((mine - other).abs().max()) < 1e-5, name
    code = sorted(path.name for path in (machine / "hubert").glob("*.py"))
    assert code == sorted(path.name for path in (machine / "hubert-again").glob("*.py"))


def test_loads_without_remote_code_where_skill_speech_is_installed(exported):
    model = transformers.AutoModel.from_pretrained(exported)
    assert type(model).__module__.startswith("skill_speech.")
    config = transformers.AutoConfig.from_pretrained(exported)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 4)
    assert config.inputs_to_logits_ratio == 320


def test_the_code_that_travels_is_the_encoders_own(exported):
    home = Path(skill_speech.__file__).parent / "encoder"
    files = {path.name for path in home.glob("*.py")} - {"__init__.py"}
    for name in files:
        assert (Path(exported) / name).read_bytes() == (home / name).read_bytes()


@pytest.mark.parametrize("variant", ["hubert-base", "wavlm-large"])
def test_hidden_states_are_in_the_order_of_transformers_own_models(variant, tmp_path):
    kind, overrides = VARIANTS[variant]
    theirs = build(kind, TINY | overrides)
    save(theirs, tmp_path / "theirs")
    export(str(tmp_path / "theirs"), str(tmp_path / "exported"), format="transformers")
    ours = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
    waveforms, lengths = BATCHES[0]
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        wanted = theirs(waveforms, attention_mask=mask, output_hidden_states=True)
        made = ours(waveforms, attention_mask=mask, output_hidden_states=True)
        as_tuple = ours(waveforms, attention_mask=mask, output_hidden_states=True, return_dict=False)
        alone = ours(waveforms, attention_mask=mask)
    assert len(made.hidden_states) == len(wanted.hidden_states)
    for mine, other in zip(made.hidden_states, wanted.hidden_states, strict=True):
        assert float((mine - other).abs().max()) < 1e-4
    assert float((made.last_hidden_state - wanted.last_hidden_state).abs().max()) < 1e-4
    assert torch.equal(as_tuple[0], made.last_hidden_state)
    assert len(as_tuple[1]) == len(made.hidden_states)
    assert alone.hidden_states is None
    with pytest.raises(ValueError, match="attentions are not available"):
        ours(waveforms, output_attentions=True)


@pytest.mark.parametrize(("normalize", "eps", "by_extractor"), [(0, 1e-7, False), (1, 1e-7, True), (1, 1e-5, False)])
def test_the_input_is_normalized_once(normalize, eps, by_extractor, tmp_path):
    """By the feature extractor if it can do what the encoder does, which matters for a quiet recording."""
    encoder = pruned_encoder(conv_norm="layer", conv_bias=True, input_normalization=bool(normalize), input_norm_eps=eps)
    folder = folder_of(encoder, tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    waveform = 0.02 * BATCHES[1][0] + 0.003
    inputs = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        made = model(**inputs).last_hidden_state
        raw = model(waveform).last_hidden_state
    wanted = hidden_states(encoder, waveform, None)[-1]
    assert float((made - wanted).abs().max()) < 1e-5
    assert extractor.do_normalize == by_extractor
    assert (float((raw - wanted).abs().max()) > 1e-2) == by_extractor
    assert load_encoder(folder).config == encoder.config


def test_saved_again_it_loads_on_both_kinds_of_machine(exported, tmp_path):
    model = transformers.AutoModel.from_pretrained(exported)
    model.save_pretrained(tmp_path)
    for name in {path.name for path in Path(exported).glob("*.py")}:
        assert (tmp_path / name).read_text() == (Path(exported) / name).read_text()
    remote = transformers.AutoConfig.from_pretrained(tmp_path).auto_map
    assert remote == json.loads((Path(exported) / "config.json").read_text())["auto_map"]
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_load_encoder_reads_it_back_and_what_was_fine_tuned(exported, tmp_path):
    encoder = student("normalized-and-length-aware")
    back = load_encoder(exported)
    assert back.config == encoder.config
    model = transformers.AutoModelForCTC.from_pretrained(exported, vocab_size=7, hidden_dropout=0.1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    model.save_pretrained(tmp_path)
    tuned = load_encoder(tmp_path)
    assert tuned.config == encoder.config.replace(hidden_dropout=0.1)
    for (name, new), old in zip(tuned.named_parameters(), encoder.parameters(), strict=True):
        assert torch.allclose(new, old + 0.01), name


def test_what_was_pushed_loads_by_its_name(exported, tmp_path, monkeypatch):
    """From the hub's cache, where a download would have put it."""
    snapshot = tmp_path / "models--me--small" / "snapshots" / ("0" * 40)
    shutil.copytree(exported, snapshot)
    (tmp_path / "models--me--small" / "refs").mkdir()
    (tmp_path / "models--me--small" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder, wanted = load_encoder("me/small"), student("normalized-and-length-aware")
    assert encoder.config == wanted.config
    assert not encoder.training
    model = transformers.AutoModel.from_pretrained("me/small", cache_dir=tmp_path).eval()
    inputs = BATCHES[1][0]
    normalized = (inputs - inputs.mean()) / inputs.std(correction=0)
    with torch.inference_mode():
        made = model(normalized).last_hidden_state
    assert float((made - hidden_states(encoder, inputs, None)[-1]).abs().max()) < 1e-5
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(InputError, match="me/small"):
        load_encoder("me/small")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("name", ["normalized-and-length-aware", "data2vec"])
def test_half_precision(name, dtype, tolerance, tmp_path):
    # Groups of 16 channels: on CPUs with AMX, torch 2.13's bfloat16 convolution is wrong in narrower ones.
    encoder = student(name, positional_groups=3)
    folder = folder_of(encoder, tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).eval()
    waveforms, lengths = BATCHES[0]
    raw = [row[:length].numpy() for row, length in zip(waveforms, lengths, strict=True)]
    inputs = extractor(raw, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.inference_mode():
        made = model(**inputs).last_hidden_state
    assert made.dtype == dtype
    wanted = hidden_states(encoder, waveforms, lengths)[-1]
    assert float((made.float() - wanted).norm() / wanted.norm()) < tolerance


PLACES = {f"encoder.{name}": "cpu" for name in ("convs", "projection", "positional_conv", "norm", "position_bias")}
LAYERS = {f"encoder.layers.{number}": "disk" for number in range(3)}


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, PLACES | LAYERS])
def test_device_map(device_map, exported, tmp_path):
    """Also with layers left on disk until they are needed."""
    model = transformers.AutoModel.from_pretrained(exported, device_map=device_map, offload_folder=tmp_path).eval()
    plain = transformers.AutoModel.from_pretrained(exported).eval()
    with torch.inference_mode():
        made, wanted = (m(BATCHES[1][0]).last_hidden_state for m in (model, plain))
    assert torch.equal(made, wanted)


def test_gradient_checkpointing_gives_the_same_gradients(exported):
    gradients = []
    for checkpointing in (False, True):
        model = transformers.AutoModel.from_pretrained(exported).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.encoder.gradient_checkpointing
        model(BATCHES[1][0]).last_hidden_state.square().sum().backward()
        gradients.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def heads(tmp_path, kind: str, auto: type, **options):
    """One of Transformers' own models with a head and ours, with the same weights."""
    theirs = build("WavLM", TINY | LARGE_STYLE | {"conv_bias": False} | options, kind)
    save(theirs, tmp_path / "theirs")
    export(str(tmp_path / "theirs"), str(tmp_path / "exported"), format="transformers")
    ours = auto.from_pretrained(tmp_path / "exported", **options).eval()
    own = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("wavlm.")}
    missing, unexpected = ours.load_state_dict(own, strict=False)
    assert not unexpected
    assert all(name.startswith("skill_speech.") for name in missing)
    return theirs, ours


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("masked", [False, True])
def test_ctc_equals_transformers_own(reduction, masked, tmp_path):
    theirs, ours = heads(
        tmp_path, "ForCTC", transformers.AutoModelForCTC, vocab_size=11, pad_token_id=0, ctc_loss_reduction=reduction
    )
    waveforms, lengths = BATCHES[0]
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long() if masked else None
    labels = torch.tensor([[1, 2, 3, 4], [5, 5, -100, -100], [10, -100, -100, -100]])
    with torch.inference_mode():
        wanted = theirs(waveforms, attention_mask=mask, labels=labels)
        made = ours(waveforms, attention_mask=mask, labels=labels)
    assert float((made.logits - wanted.logits).abs().max()) < 1e-4
    assert float((made.loss - wanted.loss).abs() / wanted.loss) < 1e-5
    with pytest.raises(ValueError, match="a label is 11; vocab_size is 11"):
        ours(waveforms, labels=labels + 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_classification_equals_transformers_own(weighted, masked, tmp_path):
    theirs, ours = heads(
        tmp_path,
        "ForSequenceClassification",
        transformers.AutoModelForAudioClassification,
        num_labels=5,
        use_weighted_layer_sum=weighted,
        classifier_proj_size=16,
    )
    waveforms, lengths = BATCHES[0]
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long() if masked else None
    labels = torch.tensor([0, 4, 2])
    with torch.inference_mode():
        wanted = theirs(waveforms, attention_mask=mask, labels=labels)
        made = ours(waveforms, attention_mask=mask, labels=labels)
    assert float((made.logits - wanted.logits).abs().max()) < 1e-4
    assert float((made.loss - wanted.loss).abs()) < 1e-5


def test_a_fresh_head_is_initialized(exported):
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        exported, num_labels=3, use_weighted_layer_sum=True
    )
    assert torch.equal(model.layer_weights, torch.full((4,), 0.25))
    assert 0.01 < float(model.projector.weight.detach().std()) < 0.03
    assert not model.classifier.bias.any()
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


class Utterances(torch.utils.data.Dataset):
    """Four utterances of noise with labels for CTC or classification."""

    def __init__(self, labels: list) -> None:
        self.labels = labels
        self.waveforms, self.lengths = batch(9_000, 8_000, 6_000, 7_000)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        waveform = self.waveforms[index, : self.lengths[index]].numpy()
        return {"waveform": waveform, "label": self.labels[index]}


class Collate:
    """What a fine-tuning script's collator does."""

    def __init__(self, folder: str) -> None:
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)

    def __call__(self, rows: list[dict]) -> dict:
        raw = [row["waveform"] for row in rows]
        inputs = dict(self.extractor(raw, sampling_rate=16_000, padding=True, return_tensors="pt"))
        labels = [torch.tensor(row["label"]) for row in rows]
        stacked = labels[0].dim() == 0
        inputs["labels"] = (
            torch.stack(labels) if stacked else torch.nn.utils.rnn.pad_sequence(labels, True, padding_value=-100)
        )
        return inputs


def trained(model, folder: str, labels: list, output: Path, **settings) -> float:
    """Two epochs of the Trainer; the last loss."""
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        label_names=["labels"],
        **settings,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=Utterances(labels),
        eval_dataset=Utterances(labels),
        data_collator=Collate(folder),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    assert np.isfinite(loss)
    trainer.save_model(str(output / "saved"))
    return loss


TRANSCRIPTS = [[1, 2, 3], [4, 5], [6, 1], [2, 2, 2, 7]]


def test_trainer_fine_tunes_for_ctc(exported, tmp_path):
    model = transformers.AutoModelForCTC.from_pretrained(exported, vocab_size=8, ctc_loss_reduction="mean")
    model.freeze_feature_encoder()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trained(model, exported, TRANSCRIPTS, tmp_path, activation_checkpointing=True)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert not any(".convs." in name for name in moved if ".encoder.convs." in name)
    assert "lm_head.weight" in moved
    assert "skill_speech.encoder.layers.0.attention.query.weight" in moved
    assert load_encoder(tmp_path / "saved").config.layers == student("wavlm").config.layers


def test_trainer_fine_tunes_for_classification(exported, tmp_path):
    model = transformers.AutoModelForAudioClassification.from_pretrained(
        exported, num_labels=2, use_weighted_layer_sum=True
    )
    model.freeze_base_model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trained(model, exported, [0, 1, 1, 0], tmp_path)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"layer_weights", "projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}


def test_lora_fine_tunes_the_linear_layers(exported, tmp_path):
    """Of every kind by name, those without inputs or outputs too."""
    model = transformers.AutoModelForCTC.from_pretrained(exported, vocab_size=8, ctc_loss_reduction="mean")
    names = ["query", "key", "value", "output", "input"]
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=names, modules_to_save=["lm_head"], init_lora_weights=True)
    )
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    trained(adapted, exported, TRANSCRIPTS, tmp_path, activation_checkpointing=True)
    moved = {name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])}
    assert all("lora_" in name or "lm_head" in name for name in moved)
    assert any("layers.0.attention.query.lora_B" in name for name in moved)
    with torch.inference_mode():
        wanted = adapted.eval()(BATCHES[1][0]).logits
        merged = adapted.merge_and_unload()
        made = merged(BATCHES[1][0]).logits
        assert float((made - wanted).abs().max()) < 1e-4
        merged.save_pretrained(tmp_path / "merged")
        again = transformers.AutoModelForCTC.from_pretrained(tmp_path / "merged").eval()
        assert torch.equal(again(BATCHES[1][0]).logits, made)


def test_audio_classification_pipeline(exported):
    model = transformers.AutoModelForAudioClassification.from_pretrained(exported, num_labels=3)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(exported)
    classify = transformers.pipeline("audio-classification", model=model, feature_extractor=extractor, device="cpu")
    assert {row["label"] for row in classify(BATCHES[1][0][0].numpy())} == {"LABEL_0", "LABEL_1", "LABEL_2"}
