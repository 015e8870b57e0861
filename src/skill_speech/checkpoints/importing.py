"""Import an encoder: from whatever wrote it to a folder of skill-speech."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..encoder import EncoderConfig
from ..errors import InputError
from ..files import refuse_full_disk
from ..limits import check_options
from .native import save_direction_norm


@dataclass(frozen=True)
class ImportResult:
    """What was recognized and written.

    Attributes:
        folder: where the encoder is now.
        format: who writes such sources.
        config: of the encoder.
        parameters: number of its parameters.
        assumed: what the source does not say and was taken to be so.
    """

    folder: Path
    format: str
    config: EncoderConfig
    parameters: int
    assumed: tuple[str, ...]


def import_encoder(source: str, output: str, *, revision: str | None = None) -> ImportResult:
    """Read an encoder from any known format and write it as a folder that every command takes.

    Args:
        source: Checkpoint to import: file, folder or hub ID.
        output: New folder to write to.
        revision: Revision of the source on the hub: branch, tag or commit.

    Raises:
        InputError: a source that cannot be read, or an output folder with something in it.
    """
    from . import read_checkpoint

    check_options(import_encoder, dict(locals()))
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; choose a new folder")
    checkpoint = read_checkpoint(source, revision=revision)
    with refuse_full_disk(folder):
        checkpoint.encoder.save_pretrained(folder)
        save_direction_norm(folder, checkpoint.direction_norm_K)
    return ImportResult(
        folder, checkpoint.format, checkpoint.encoder.config, checkpoint.encoder.num_parameters(), checkpoint.assumed
    )
