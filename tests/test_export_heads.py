"""Whole models in Transformers: every head in a folder of its own, with all that belongs to it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

import skill_speech
from skill_speech import export, load_encoder, load_model
from tests.clean_environment import run_with
from tests.exported_models import BATCHES
from tests.models_with_heads import LABELS, MODELS, VOCABULARY, fine_tuned, model_named, save_4, save_5
from tests.test_export_transformers import TRANSCRIPTS, trained
from tests.transformers_models import LARGE_STYLE

AUTO = {
    "ForCTC": transformers.AutoModelForCTC,
    "ForSequenceClassification": transformers.AutoModelForAudioClassification,
    "ForAudioFrameClassification": transformers.AutoModelForAudioFrameClassification,
    "ForXVector": transformers.AutoModelForAudioXVector,
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    skill_speech.register()


def exported(model: Any, folder: Path, save: Any = save_5, **options: Any) -> Path:
    save(model, folder / "theirs", **options)
    export(str(folder / "theirs"), str(folder / "exported"), format="transformers")
    return folder / "exported"


def padded() -> tuple[Tensor, Tensor, Tensor]:
    waveforms, lengths = BATCHES[0]
    return waveforms, lengths, (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()


def assert_close(mine: Tensor, wanted: Tensor) -> None:
    assert mine.shape == wanted.shape
    assert float((mine - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def assert_same(mine: Any, theirs: Any, lengths: Tensor | None = None) -> None:
    """Logits and embeddings; of logits of frames, the valid ones."""
    logits, wanted = mine["logits"], theirs["logits"]
    if logits.ndim == 3 and lengths is not None:
        valid = torch.arange(logits.shape[1]) < lengths[:, None]
        logits, wanted = logits[valid], wanted[valid]
    assert_close(logits, wanted)
    if "embeddings" in theirs:
        assert_close(mine["embeddings"], theirs["embeddings"])


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_the_same_task_with_the_same_logits(name, tmp_path):
    """In Transformers, and read back by us; padded and not."""
    theirs, head = model_named(name), MODELS[name][1]
    folder = exported(theirs, tmp_path, save_4 if "wav2vec2" in name else save_5)
    ours, report = AUTO[head].from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert type(ours).__name__ == f"SkillSpeech{head}"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [type(ours).__name__]
    weights = set(dict(ours.named_parameters()))
    named = {name for name, _ in theirs.named_parameters() if not name.startswith(f"{theirs.base_model_prefix}.")}
    assert named <= weights
    before, back = load_model(tmp_path / "theirs"), load_model(folder)
    assert back.encoder.config == before.encoder.config
    stated = {"labels": before.head.config.labels, "projection": before.head.config.projection}
    for field, value in vars(before.head.config).items():
        assert (stated | vars(back.head.config))[field] == value or field in stated
    for waveforms, lengths, mask in (padded(), (BATCHES[1][0], None, None)):
        with torch.inference_mode():
            wanted = theirs(waveforms, attention_mask=mask)
            made, read = ours.eval()(waveforms, attention_mask=mask), back(waveforms, lengths)
        assert_same(made, wanted, read.lengths_B)
        assert_same({"logits": read.logits, "embeddings": read.embeddings_BD}, wanted, read.lengths_B)


@pytest.mark.parametrize("name", ["wav2vec2-sequence", "wavlm-frame", "wavlm-xvector", "wavlm-ctc-adapter"])
def test_losses_are_those_of_transformers(name, tmp_path):
    theirs, (waveforms, _, mask) = model_named(name), padded()
    ours = AUTO[MODELS[name][1]].from_pretrained(exported(theirs, tmp_path)).eval()
    frames = ours(waveforms).logits.shape[1]
    labels = {
        "sequence": torch.tensor([0, 4, 2]),
        "frame": torch.nn.functional.one_hot(torch.arange(3 * frames).view(3, frames) % 3, 3),
        "xvector": torch.tensor([6, 0, 3]),
        "adapter": torch.tensor([[5, 6], [7, -100], [8, -100]]),
    }[name.rpartition("-")[2]]
    if name.endswith("adapter"):
        theirs.config.ctc_loss_reduction = ours.config.ctc_loss_reduction = "mean"
    ours(waveforms, attention_mask=mask, labels=labels).loss.backward()
    wanted = theirs(waveforms, attention_mask=mask, labels=labels).loss
    wanted.backward()
    made = ours(waveforms, attention_mask=mask, labels=labels).loss
    assert float((made - wanted).abs()) <= 1e-5 * float(wanted.abs())
    gradients = dict(ours.named_parameters())
    for weight, parameter in theirs.named_parameters():
        if weight in gradients and parameter.grad is not None and ".adapter." not in weight:
            assert torch.allclose(gradients[weight].grad, parameter.grad, rtol=1e-3, atol=1e-5), weight


@pytest.mark.parametrize(
    ("problem", "labels"),
    [("multi_label_classification", torch.eye(3, 5)), ("regression", torch.arange(15.0).view(3, 5))],
)
def test_problems_of_other_types_have_their_losses(problem, labels, tmp_path):
    folder = exported(fine_tuned("Hubert", "ForSequenceClassification", problem_type=problem), tmp_path)
    ours = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    assert ours.config.problem_type == problem
    with torch.inference_mode():
        made = ours(BATCHES[0][0], labels=labels)
    function = {"regression": torch.nn.MSELoss(), "multi_label_classification": torch.nn.BCEWithLogitsLoss()}[problem]
    assert torch.allclose(made.loss, function(made.logits, labels))


ON_ANOTHER_MACHINE = """
import json, sys
import numpy as np
from transformers import AutoProcessor, pipeline
samples = np.load("samples.npy")
made = {}
for place, trust in (("theirs", None), ("exported", True)):
    recognize = pipeline("automatic-speech-recognition", model=f"ctc/{place}", trust_remote_code=trust, device="cpu")
    made[place] = [
        recognize(samples.copy(), return_timestamps=stamps, **options)
        for stamps in ("char", "word")
        for options in ({}, {"chunk_length_s": 1.0, "stride_length_s": 0.25}, {"chunk_length_s": 0.9})
    ]
    made[place].append(recognize([samples[:9_000], samples[5_000:]], batch_size=2))
    for folder in ("sequence", "many"):
        classify = pipeline("audio-classification", model=f"{folder}/{place}", trust_remote_code=trust, device="cpu")
        made[place] += [classify(samples.copy()), classify(samples.copy(), top_k=2)]
    processor = AutoProcessor.from_pretrained(f"ctc/{place}", trust_remote_code=trust)
    made[place].append([type(processor).__name__, processor(text="ab ÄÄ").input_ids])
    assert type(recognize.model).__module__.startswith("transformers_modules.") == bool(trust)
print(json.dumps(made))
"""


@pytest.mark.parametrize("save", [save_4, save_5], ids=["4.57", "5"])
def test_pipelines_equal_those_of_the_models_they_come_from(save, tmp_path):
    """Text, timestamps, chunks and labels, where skill_speech is not installed."""
    exported(fine_tuned("Wav2Vec2", "ForCTC", **LARGE_STYLE), tmp_path / "ctc", save, normalize=True)
    exported(fine_tuned("Hubert", "ForSequenceClassification"), tmp_path / "sequence", save, normalize=False)
    many = fine_tuned("WavLM", "ForSequenceClassification", problem_type="multi_label_classification")
    exported(many, tmp_path / "many", save, mask=False)
    samples = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * np.linspace(0.1, 1, 40_000)
    np.save(tmp_path / "samples.npy", samples.astype(np.float32))
    made = json.loads(run_with(["torch", "transformers"], ON_ANOTHER_MACHINE, tmp_path))
    first = made["theirs"][0]
    assert len(set(first["text"])) > 3
    assert len(first["chunks"]) > 10
    for one, wanted in zip(made["exported"], made["theirs"], strict=True):
        if isinstance(wanted, list) and "score" in wanted[0]:
            assert [row["label"] for row in one] == [row["label"] for row in wanted]
            assert np.allclose([row["score"] for row in one], [row["score"] for row in wanted], atol=1e-5)
            assert {row["label"] for row in wanted} <= set(LABELS)
        else:
            assert one == wanted


def test_what_belongs_to_a_model_comes_along_without_code_and_language_model(tmp_path, caplog):
    save_4(fine_tuned("Hubert", "ForCTC"), tmp_path / "theirs", processor="Wav2Vec2ProcessorWithLM", mask=False)
    path = tmp_path / "theirs" / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}})
    )
    with caplog.at_level(logging.WARNING):
        export(str(tmp_path / "theirs"), str(tmp_path / "out"), format="transformers")
    assert caplog.text.count("its language model is not exported") == 1
    assert caplog.text.count("code of its own processor is not exported") == 1
    assert "auto_map" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is transformers.Wav2Vec2Processor
    assert not processor.feature_extractor.return_attention_mask
    assert processor.tokenizer.get_vocab() == VOCABULARY
    assert processor.tokenizer.pad_token_id == 0
    export(str(tmp_path / "theirs"), str(tmp_path / "aware"), format="transformers", length_aware=True)
    aware = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "aware")
    assert aware.return_attention_mask


def test_a_vocabulary_alone_is_enough(tmp_path):
    """What the model_type says to Transformers, ours does not: it stands in the files."""
    model = fine_tuned("Hubert", "ForCTC")
    model.save_pretrained(tmp_path / "theirs")
    vocabulary = {token.replace("[PAD]", "<pad>").replace("[UNK]", "<unk>"): n for token, n in VOCABULARY.items()}
    (tmp_path / "theirs" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "theirs" / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    export(str(tmp_path / "theirs"), str(tmp_path / "out"), format="transformers")
    waveform = BATCHES[1][0][0].numpy()
    texts = []
    for folder in ("theirs", "out"):
        recognize = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / folder), device="cpu")
        texts.append(recognize(waveform.copy(), return_timestamps="char"))
    assert texts[0] == texts[1]
    assert type(transformers.AutoProcessor.from_pretrained(tmp_path / "out")) is transformers.Wav2Vec2Processor


def test_a_recognizer_without_vocabulary_is_exported_and_says_so(tmp_path, caplog):
    model = fine_tuned("Hubert", "ForCTC")
    model.save_pretrained(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING):
        export(str(tmp_path / "theirs"), str(tmp_path / "out"), format="transformers")
    assert "no vocab.json there" in caplog.text
    assert load_model(tmp_path / "out").head.config.outputs == len(VOCABULARY)


def test_the_input_is_normalized_once_where_the_model_does_it(tmp_path):
    """An encoder of fairseq's epsilon: its extractor must not."""
    save_5(fine_tuned("Wav2Vec2", "ForCTC", **LARGE_STYLE), tmp_path / "theirs", normalize=True)
    model = load_model(tmp_path / "theirs")
    model.encoder.config = model.encoder.config.replace(input_norm_eps=1e-5)
    model.save_pretrained(tmp_path / "ours")
    export(str(tmp_path / "ours"), str(tmp_path / "out"), format="transformers")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
    assert not processor.feature_extractor.do_normalize
    waveform = 0.01 * BATCHES[1][0]
    theirs = transformers.AutoModelForCTC.from_pretrained(tmp_path / "out").eval()
    inputs = processor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        assert_close(theirs(**inputs).logits, load_model(tmp_path / "ours")(waveform).logits)


def test_folders_of_version_0_1_still_load(tmp_path):
    """Exported as encoders and fine-tuned since: their config.json knows nothing of the newer settings."""
    load_encoder(save_5(fine_tuned("WavLM", "ForCTC"), tmp_path / "theirs")).save_pretrained(tmp_path / "encoder")
    export(str(tmp_path / "encoder"), str(tmp_path / "exported"), format="transformers")
    for auto, options in (
        (transformers.AutoModelForCTC, {"vocab_size": 8}),
        (transformers.AutoModelForAudioClassification, {"num_labels": 3, "use_weighted_layer_sum": True}),
    ):
        tuned = auto.from_pretrained(tmp_path / "exported", **options).eval()
        folder = tmp_path / type(tuned).__name__
        tuned.save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        newer = [
            name for name in values if name.startswith(("tdnn", "xvector", "add_adapter", "adapter", "num_adapter"))
        ]
        assert len(newer) == 8
        for name in [*newer, "output_hidden_size"]:
            values.pop(name, None)
        values["auto_map"] = {name: place for name, place in values["auto_map"].items() if "Frame" not in name}
        (folder / "config.json").write_text(json.dumps(values))
        for name in ("heads.py", "head_config.py"):
            (folder / name).unlink()
        with torch.inference_mode():
            wanted = tuned(BATCHES[1][0]).logits
            again = auto.from_pretrained(folder).eval()(BATCHES[1][0]).logits
            assert torch.equal(again, wanted)
            assert_close(load_model(folder)(BATCHES[1][0]).logits, wanted)


def test_fresh_heads_are_initialized(tmp_path):
    folder = exported(fine_tuned("WavLM", "ForCTC"), tmp_path)
    speakers = transformers.AutoModelForAudioXVector.from_pretrained(folder, num_labels=4, use_weighted_layer_sum=True)
    assert torch.equal(speakers.layer_weights, torch.full((4,), 0.25))
    assert 0.5 < float(speakers.objective.weight.detach().std()) < 1.5
    options = {"add_adapter": True, "output_hidden_size": 32, "vocab_size": 5, "ignore_mismatched_sizes": True}
    adapted = transformers.AutoModelForCTC.from_pretrained(folder, **options)
    assert torch.equal(adapted.adapter.proj_layer_norm.weight, torch.ones(32))
    for model in (speakers, adapted):
        assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_the_trainer_goes_on_from_an_exported_recognizer(tmp_path):
    folder = exported(fine_tuned("Hubert", "ForCTC", ctc_loss_reduction="mean"), tmp_path)
    model = transformers.AutoModelForCTC.from_pretrained(folder, ctc_loss_reduction="mean")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trained(model, str(folder), TRANSCRIPTS, tmp_path / "run", activation_checkpointing=True)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {"lm_head.weight", "skill_speech.encoder.layers.0.attention.query.weight"} <= moved
    back = load_model(tmp_path / "run" / "saved")
    with torch.inference_mode():
        assert_close(back(BATCHES[1][0]).logits, model.eval()(BATCHES[1][0]).logits)


@pytest.mark.parametrize("saved", [["lm_head"], []])
def test_lora_reaches_the_head_too(saved, tmp_path):
    """As a layer that is adapted, and as one that is trained whole: both replace the model's own."""
    folder = exported(fine_tuned("Hubert", "ForCTC"), tmp_path)
    model = transformers.AutoModelForCTC.from_pretrained(folder, ctc_loss_reduction="mean")
    targets = ["query", "value", *([] if saved else ["lm_head"])]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, modules_to_save=saved))
    with torch.inference_mode():
        first = adapted.eval()(BATCHES[1][0]).logits.clone()
    trained(adapted.train(), str(folder), TRANSCRIPTS, tmp_path / "run")
    name = "modules_to_save" if saved else "lora_B"
    assert any("lm_head" in weight and name in weight for weight, _ in adapted.named_parameters())
    with torch.inference_mode():
        wanted = adapted.eval()(BATCHES[1][0]).logits
        assert float((wanted - first).abs().max()) > 1e-3
        merged = adapted.merge_and_unload()
        assert float((merged(BATCHES[1][0]).logits - wanted).abs().max()) < 1e-3
    merged.save_pretrained(tmp_path / "merged")
    with torch.inference_mode():
        assert_close(load_model(tmp_path / "merged")(BATCHES[1][0]).logits, merged(BATCHES[1][0]).logits)


def test_the_heads_code_that_travels_is_the_packages_own(tmp_path):
    folder = exported(fine_tuned("Hubert", "ForCTC"), tmp_path)
    home = Path(skill_speech.__file__).parent / "heads"
    for there, here in (("heads.py", "heads.py"), ("head_config.py", "config.py")):
        lines = [
            (folder / there).read_text().splitlines(),
            (home / here).read_text().splitlines(),
        ]
        changed = [pair for pair in zip(*lines, strict=True) if pair[0] != pair[1]]
        assert changed
        assert all(line.startswith("from .") for pair in changed for line in pair)
