"""Every cell of the table in docs/importing.md: the file is read as the same encoder as Transformers' folder."""

from __future__ import annotations

import pytest
import torch

from skill_speech import load_encoder
from skill_speech.checkpoints import read_checkpoint
from tests.support_matrix import FILES, MARKS, MODELS, PAGE, Case, known_folder, table, writers

FORMATS = {"Lightning, DDP": {"Transformers"}, "fairseq": {"fairseq", "WavLM"}, "DPHuBERT, DiariZen": {"DPHuBERT"}}


@pytest.mark.parametrize(("family", "file"), [(family, file) for family in MODELS for file in writers(family)])
def test_a_cell_of_the_table(family, file, tmp_path):
    known, folder = known_folder(family, tmp_path / "known"), tmp_path / "written"
    folder.mkdir()
    model = MODELS[family][0]()
    checkpoint = read_checkpoint(writers(family)[file](Case(model, known, folder)))
    wanted = load_encoder(known)
    states = wanted.state_dict()
    assert checkpoint.encoder.state_dict().keys() == states.keys()
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(tensor, states[name]), name
    assert checkpoint.format in FORMATS.get(file, {file})
    # What shapes do not tell is the format's to assume.
    free = {name: None for name in ("family", "input_normalization", "input_norm_eps") if checkpoint.assumed}
    free |= {name: None for name in vars(wanted.config) if name.endswith("_dropout") or name == "input_norm_eps"}
    mine, theirs = (vars(encoder.config) | free for encoder in (checkpoint.encoder, wanted))
    assert mine == theirs


def test_the_page_has_the_table():
    """Otherwise: python -m tests.support_matrix."""
    assert PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0] == table()


def test_every_file_of_the_table_is_that_of_some_family():
    assert set(FILES) == {file for family in MODELS for file in writers(family)}
