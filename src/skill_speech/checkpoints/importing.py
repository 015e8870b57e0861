"""Import a model, head included: from whatever wrote it to a folder of skill-speech."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..encoder import EncoderConfig
from ..errors import InputError
from ..files import refuse_full_disk
from ..heads import HeadConfig, SpeechModel
from ..limits import check_options
from .native import save_direction_norm


@dataclass(frozen=True)
class ImportResult:
    """What was recognized and written.

    Attributes:
        folder: where the model is now.
        format: who writes such sources.
        config: of the encoder.
        parameters: number of them, the head's included.
        head: what stands on it; None for an encoder alone.
        assumed: what the source does not say and was taken to be so.
    """

    folder: Path
    format: str
    config: EncoderConfig
    parameters: int
    head: HeadConfig | None
    assumed: tuple[str, ...]


def import_encoder(
    source: str, output: str, *, revision: str | None = None, target_lang: str | None = None
) -> ImportResult:
    """Read an encoder, and its head if it has one, from any known format; write a folder that every command takes.

    Args:
        source: Checkpoint to import: file, folder or hub ID.
        output: New folder to write to.
        revision: Revision of the source on the hub: branch, tag or commit.
        target_lang: Language code for a model with adapters for many languages (MMS); by default, the language of its
            weights.

    Raises:
        InputError: a source that cannot be read, or an output folder with something in it.
    """
    from . import read_checkpoint

    check_options(import_encoder, dict(locals()))
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; choose a new folder")
    checkpoint = read_checkpoint(source, revision=revision, target_lang=target_lang)
    encoder, head = checkpoint.encoder, checkpoint.head
    model = SpeechModel(encoder, head, checkpoint.files)
    with refuse_full_disk(folder):
        model.save_pretrained(folder)
        save_direction_norm(folder, checkpoint.direction_norm_K)
    return ImportResult(
        folder=folder,
        format=checkpoint.format,
        config=encoder.config,
        parameters=model.num_parameters(),
        head=None if head is None else head.config,
        assumed=checkpoint.assumed,
    )
