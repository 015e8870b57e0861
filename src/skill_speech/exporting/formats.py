"""One door out: `export`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..checkpoints import load_encoder
from ..encoder import Encoder
from ..errors import InputError
from ..files import atomic_folder, refuse_existing
from .measuring import Measurement
from .program import HiddenStates

Format = Literal["transformers", "onnx", "torch-export", "torchaudio", "s3prl"]
TRACED = ("onnx", "torch-export")


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where to.
        format: of it.
        size: bytes of all its files.
        measurements: size, speed and error of an ONNX model and, first, of the encoder in torch; empty for the others.
        address: on the hub, if it was pushed there.
    """

    folder: Path
    format: Format
    size: int
    measurements: tuple[Measurement, ...] = ()
    address: str | None = None


def export(
    model: str,
    output: str,
    *,
    format: Format,
    quantize: Literal["int8"] | None = None,
    hidden_states: HiddenStates = "all",
    length_aware: bool = False,
    push_to_hub: str | None = None,
) -> Export:
    """Write an encoder as another runtime wants it.

    Args:
        model: hub id, folder or file, as `load_encoder` takes it.
        output: a folder that does not exist yet or is empty.
        format: "transformers" for AutoModel, "onnx" for onnxruntime, "torch-export" for torch alone, "torchaudio" for
            DPHuBERT's and TorchAudio's layout, "s3prl" for an upstream folder.
        quantize: "int8" for 8-bit weights and activations; ONNX only.
        hidden_states: "last" leaves the other hidden states out; ONNX and torch-export only.
        length_aware: keep padding out of everything, so that a padded batch equals its utterances one by one.
        push_to_hub: repository on the hub that the folder is uploaded to when it is complete.

    Raises:
        InputError: a model that cannot be loaded, options that do not go together, a package that the format needs and
            that is not installed, an output folder in use, a hub that does not take it.
    """
    _check(format, quantize, hidden_states, length_aware)
    refuse_existing(output)
    encoder = load_encoder(model, length_aware=length_aware)
    folder = Path(output)
    with atomic_folder(folder) as temporary:
        measurements = _save(encoder, temporary, format, quantize, hidden_states)
        card = Path(model) / "README.md"
        if card.is_file():
            shutil.copyfile(card, temporary / card.name)
    return Export(
        folder=folder,
        format=format,
        size=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        measurements=measurements,
        address=None if push_to_hub is None else _push(folder, push_to_hub),
    )


def _check(format: str, quantize: str | None, hidden_states: str, length_aware: bool) -> None:
    if format not in get_args(Format):
        raise InputError(f"format is {format!r}; it can be {', '.join(get_args(Format))}")
    if quantize not in (None, "int8"):
        raise InputError(f"quantize is {quantize!r}; it can be 'int8'")
    if hidden_states not in get_args(HiddenStates):
        raise InputError(f"hidden_states is {hidden_states!r}; it can be {' or '.join(get_args(HiddenStates))}")
    if quantize and format != "onnx":
        raise InputError(f"quantize goes with format onnx only; {format} keeps the encoder's weights")
    if hidden_states != "all" and format not in TRACED:
        raise InputError(
            f"hidden_states goes with formats {' and '.join(TRACED)} only; {format} has them all on demand"
        )
    if length_aware and format == "torchaudio":
        raise InputError("length_aware does not go with format torchaudio: its layout has no place for it")
    if format == "onnx":
        from .onnx_model import need_onnx

        need_onnx()


def _save(
    encoder: Encoder, folder: Path, format: Format, quantize: Literal["int8"] | None, hidden_states: HiddenStates
) -> tuple[Measurement, ...]:
    if format == "onnx":
        from .onnx_model import save_onnx

        return save_onnx(encoder, folder, hidden_states, quantize)
    if format == "transformers":
        from .hugging_face import save_transformers

        save_transformers(encoder, folder)
    elif format == "torch-export":
        from .torch_export import save_torch_export

        save_torch_export(encoder, folder, hidden_states)
    elif format == "torchaudio":
        from ..checkpoints.torchaudio import save_torchaudio

        save_torchaudio(encoder, folder / "model.pth")
    else:
        from .s3prl import save_s3prl

        save_s3prl(encoder, folder)
    return ()


def _push(folder: Path, repository: str) -> str:
    """Upload a folder; its address on the hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} is complete but could not be pushed to {repository}: {reason}") from None
    return str(address)
