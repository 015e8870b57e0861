"""The import command: any known file in, a folder that every command takes out."""

from __future__ import annotations

import pytest
import torch

from skill_speech import Encoder, InputError, import_encoder, load_encoder, load_model
from skill_speech.cli import main
from skill_speech.encoder import hubert_config
from tests.fairseq_files import fairseq_settings, fairseq_weights, write_fairseq
from tests.models_with_heads import fine_tuned, save_5
from tests.torchaudio_reference import random_state, student_config
from tests.transformers_models import LARGE_STYLE, TINY, build, save


@pytest.fixture
def student(tmp_path):
    config = student_config(wavlm=True, large=True)
    torch.save({"state_dict": random_state(config), "config": config}, tmp_path / "student.pth")
    return tmp_path / "student.pth"


def test_an_imported_encoder_is_the_encoder_of_its_file(student, tmp_path):
    result = import_encoder(str(student), str(tmp_path / "ours"))
    ours, theirs = load_encoder(tmp_path / "ours"), load_encoder(student)
    assert result.folder == tmp_path / "ours"
    assert (result.format, result.assumed) == ("DPHuBERT", ())
    assert result.parameters == ours.num_parameters()
    assert result.config == ours.config == theirs.config
    waveforms = torch.randn(1, 4_000)
    with torch.inference_mode():
        assert torch.equal(ours(waveforms).last_hidden_state_BTD, theirs(waveforms).last_hidden_state_BTD)


def test_the_command_says_what_it_recognized(student, tmp_path, capsys):
    assert main(["import", str(student), "--output", str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    for row in (
        ("format", "DPHuBERT"),
        ("family", "wavlm"),
        ("heads", "2 0 3 1"),
        ("feed-forward units", "13 40 0 1"),
        ("layer norms", "before each sublayer"),
        ("waveforms", "16,000 Hz, normalized first"),
    ):
        assert any(all(part in line for part in row) for line in printed.splitlines()), row
    assert "assumed" not in printed
    assert str(tmp_path / "ours") in printed


def test_the_command_says_what_it_assumed(tmp_path, capsys):
    config = student_config(wavlm=True, large=False, encoder_remaining_heads=[list(range(6))] * 4)
    state = random_state(config | {"encoder_use_attention": [True] * 4})
    torch.save(state, tmp_path / "state.pth")
    assert main(["import", str(tmp_path / "state.pth"), "--output", str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert "assumed" in printed
    assert "position bias up to a distance of 800" in printed


def test_the_same_door_takes_every_source(tmp_path):
    model = build("Hubert", TINY | LARGE_STYLE)
    path = write_fairseq(tmp_path / "m.pt", "cfg", fairseq_settings(model, "hubert"), fairseq_weights(model), True)
    assert import_encoder(str(path), str(tmp_path / "1")).format == "fairseq"
    assert import_encoder(str(save(model, tmp_path / "theirs")), str(tmp_path / "2")).format == "Transformers"
    assert import_encoder(str(tmp_path / "2"), str(tmp_path / "3")).format == "skill-speech"


def test_a_folder_with_something_in_it_is_left_alone(student, tmp_path, capsys):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists; choose a new folder"):
        import_encoder(str(student), str(tmp_path / "ours"))
    assert main(["import", str(student), "--output", str(tmp_path / "ours")]) == 2
    assert "choose a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["notes.txt"]


def test_a_refused_file_leaves_nothing_behind(tmp_path, capsys):
    torch.save(Encoder(hubert_config(hidden_size=16, num_heads=1, depth=1, units=1, channels=1)), tmp_path / "m.pt")
    assert main(["import", str(tmp_path / "m.pt"), "--output", str(tmp_path / "ours")]) == 2
    assert "save its state_dict() instead" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_a_gated_training_checkpoint_is_imported_as_its_student(tmp_path, caplog):
    state = random_state(student_config(wavlm=False, large=False))
    state["encoder.transformer.layers.2.attention.hard_concrete_for_heads.log_alpha"] = torch.tensor([3.0, -3.0, 3.0])
    for layer, heads in ((0, 2), (3, 1)):
        name = f"encoder.transformer.layers.{layer}.attention.hard_concrete_for_heads.log_alpha"
        state[name] = torch.full((heads,), 3.0)
    config = student_config(wavlm=False, large=False)
    torch.save({"state_dict": state, "config": config}, tmp_path / "gated.pth")
    result = import_encoder(str(tmp_path / "gated.pth"), str(tmp_path / "ours"))
    assert "pruned while reading" in result.format
    assert [len(layer.heads) for layer in result.config.layers] == [2, 0, 2, 1]


@pytest.mark.parametrize(("kind", "head"), [("Hubert", "ForCTC"), ("Wav2Vec2", "ForSequenceClassification")])
def test_a_head_is_imported_with_its_encoder(tmp_path, capsys, kind, head):
    save_5(fine_tuned(kind, head), tmp_path / "tuned")
    assert main(["import", str(tmp_path / "tuned"), "--output", str(tmp_path / "imported")]) == 0
    theirs, ours = (load_model(tmp_path / name) for name in ("tuned", "imported"))
    assert f"{ours.head.config.kind}, {ours.head.config.outputs} outputs" in capsys.readouterr().out
    waveforms_BT = torch.randn(2, 4_000)
    with torch.inference_mode():
        assert torch.equal(ours(waveforms_BT).logits, theirs(waveforms_BT).logits)
    assert ours.files == theirs.files
