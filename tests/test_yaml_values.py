"""What a text of YAML says is bounded by its length; what it says otherwise is what PyYAML makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from skill_speech.errors import InputError
from skill_speech.run.folder import refuse_changes
from skill_speech.yaml_values import LONGEST, read_yaml


def doubling(line: str, first: str = "x", lines: int = 12) -> str:
    """Each line names the one before nine times: a text of a few hundred characters that stands for 9^12 values."""
    rows = [f"a0: &a0 {first}"]
    return "\n".join(rows + [line.format(n + 1, ", ".join([f"*a{n}"] * 9)) for n in range(lines)])


@pytest.mark.parametrize(
    "text",
    [
        doubling("a{0}: &a{0} [{1}]"),
        doubling("a{0}: &a{0} {{<<: [{1}]}}", "{x: 1}"),  # merged when it is read, not only when it is shown
        doubling("a{0}: &a{0} [{1}]", "x" * 20_000, lines=1),
        "a: &a [*a]",
        "a: &a {b: *a}",
        "[" * 5_000 + "]" * 5_000,
        "[" * 5_000,
        "x" * (LONGEST + 1),
    ],
)
def test_a_text_that_says_more_than_it_holds_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(yaml.YAMLError):
        read_yaml(path)
    with pytest.raises(InputError, match="cannot be read"):
        refuse_changes(path, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "a: &a {b: [1, 2.5, null], c: text}\nd: *a\ne: {<<: *a, b: true}",
        doubling("a{0}: &a{0} [{1}]", lines=3),
    ],
)
def test_aliases_and_merges_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_yaml(tmp_path / "config.yaml") == yaml.safe_load(text)
