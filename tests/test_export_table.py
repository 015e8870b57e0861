"""The table of docs/export.md: its columns are the formats, and every cell has a test that shows it."""

from __future__ import annotations

from pathlib import Path

from skill_speech.exporting.formats import FORMATS

DOCS = Path(__file__).parents[1] / "docs" / "export.md"

ONNX = "runtimes::test_onnx_equals_the_encoder_where_torch_is_not_installed"
TORCH = "runtimes::test_torch_export_equals_the_encoder_where_only_torch_is_installed"
S3PRL = "runtimes::test_s3prl_upstream_equals_the_encoder_where_only_torch_is_installed"
CONTRACT = "runtimes::test_s3prl_upstream_keeps_its_contract"
LAYOUT = "runtimes::test_a_torchaudio_file_is_the_encoder_where_only_torch_is_installed"
MODEL = "transformers::test_loads_where_only_transformers_and_torch_are_installed"
ALONE = dict(zip(FORMATS, (MODEL, ONNX, TORCH, LAYOUT, S3PRL), strict=True))
REFUSED = "::test_what_does_not_go_together_is_refused_before_anything_is_loaded"
AWARE = "::test_length_aware_is_for_every_format_that_can_say_it"
PUSHED = "::test_push_to_hub_takes_every_format"
INT8 = "runtimes::test_the_example_encodes_a_wav_file_where_torch_is_not_installed"

# In STUDENTS, which the tests of ALONE try, are pruned layers, the families, normalized and length-aware encoders; in
# BATCHES and SHORTEST the lengths.
SHOWN_BY: dict[str, dict[str, str]] = {
    "written": ALONE | {"transformers": "::test_the_command_writes_a_folder"},
    "runs with": ALONE,
    "skill_speech needed there": ALONE,
    "pruned students, sublayers gone": ALONE,
    "families": ALONE | {"torchaudio": "torchaudio_checkpoints::test_what_the_layout_cannot_express_is_not_written"},
    "batches of unequal lengths": ALONE,
    "hidden states": ALONE
    | {"onnx": INT8, "torch-export": "runtimes::test_torch_export_of_the_last_hidden_state_alone"},
    "input normalization": ALONE | {"transformers": "transformers::test_the_input_is_normalized_once"},
    "`--length_aware true`": dict.fromkeys(FORMATS, AWARE) | {"torchaudio": REFUSED},
    "`--quantize int8` or `int4`": dict.fromkeys(FORMATS, REFUSED) | {"onnx": INT8},
    "`--push_to_hub REPO`": dict.fromkeys(FORMATS, PUSHED)
    | {"transformers": "::test_push_to_hub_uploads_the_complete_folder"},
    "model card": dict.fromkeys(FORMATS, "cards::test_the_card_is_the_models_own_with_the_way_to_load_this_folder"),
    "shortest input": ALONE,
    "fine-tuning": {
        "transformers": "transformers::test_trainer_fine_tunes_for_ctc",
        "onnx": ONNX,
        "torch-export": TORCH,
        "torchaudio": LAYOUT,
        "s3prl": CONTRACT,
    },
    "heads": {
        "transformers": "heads::test_a_folder_of_the_same_task_with_the_same_logits",
        "onnx": "head_runtimes::test_onnx_gives_the_heads_outputs",
        "torch-export": "head_runtimes::test_torch_export_gives_the_heads_outputs",
        "torchaudio": "head_runtimes::test_torchaudio_has_a_place_for_ctc",
        "s3prl": "head_runtimes::test_s3prl_has_the_encoder_alone_and_says_so",
    },
    "`load_encoder` reads it back": ALONE
    | {"transformers": "transformers::test_load_encoder_reads_it_back_and_what_was_fine_tuned"},
}


def test_every_cell_of_the_table_has_a_test():
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| | `transformers`"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    heading, _, *rows = table
    assert heading[1:] == [f"`{format}`" for format in FORMATS]
    assert [row[0] for row in rows] == list(SHOWN_BY)
    assert all(len(row) == len(heading) and all(row) for row in rows)
    for tests in SHOWN_BY.values():
        assert tests.keys() == set(FORMATS)
        for place in tests.values():
            file, _, name = place.partition("::")
            module = file if file.startswith("torchaudio") else f"export_{file}".rstrip("_")
            code = Path(__file__).with_name(f"test_{module}.py").read_text(encoding="utf-8")
            assert f"\ndef {name}(" in code, place
