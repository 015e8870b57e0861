"""One door out: `export`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..checkpoints import load_model
from ..errors import InputError
from ..files import atomic_folder, refuse_existing, refuse_full_disk
from ..heads import SpeechModel, save_head_config
from ..kernels.rounding import Rounding
from ..limits import check_options, refuse_other_rates
from ..reporting.card_facts import put_facts, said_words
from ..reporting.model_card import LICENSE, set_section, write_card
from .cards import adapt_card, card_of
from .measuring import Measurement
from .processors import processor_files
from .program import HiddenStates
from .travel.remote_code import CODE_LICENSE

logger = logging.getLogger(__name__)

Format = Literal["transformers", "onnx", "torch-export", "torchaudio", "s3prl"]
FORMATS: tuple[Format, ...] = get_args(Format)
TRACED = ("onnx", "torch-export")
OF_THE_CODE = f"""The code in this folder is skill-speech's, under Apache-2.0: [{CODE_LICENSE}]({CODE_LICENSE}). That is
not the license of the weights."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: where to.
        format: of it.
        size: bytes of all its files.
        measurements: size, speed and error of an ONNX model and, first, of the model in torch; empty for the others.
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
    quantize: Rounding | None = None,
    hidden_states: HiddenStates | None = None,
    length_aware: bool = False,
    target_lang: str | None = None,
    scores: str | None = None,
    language: str | None = None,
    datasets: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    push_to_hub: str | None = None,
) -> Export:
    """Write a model as another runtime wants it: encoder, head, processor and model card.

    Args:
        model: Model to export: hub ID, folder or file.
        output: New or empty folder to write to.
        format: Export format: "transformers" for AutoModel and pipelines, "onnx" for ONNX Runtime, "torch-export" for
            torch alone, "torchaudio" for the layout of DPHuBERT and TorchAudio (no head or a CTC head), "s3prl" for an
            upstream folder (encoder only).
        quantize: Quantization of the transformer's linear maps: "int8" for 8-bit weights and inputs, "int4" for 4-bit
            weights; ONNX only.
        hidden_states: Hidden states to output: "all" or "last"; ONNX and torch-export only. By default, all for an
            encoder alone, and none for a model with a head, which outputs logits.
        length_aware: Exclude padding from all computation, so that a padded batch gives the same results as its
            utterances one by one.
        target_lang: Language code for a model with adapters for many languages (MMS); by default, the language of its
            weights.
        scores: Folder of an `evaluate` run with results of this encoder to put into the model card; for RUN/model,
            RUN/evaluation by default.
        language: Languages to state in the model card, as codes separated by commas, such as en,de; by default, those
            in the card of the teacher.
        datasets: Hub IDs of the training data to state in the model card, separated by commas.
        license: License of the weights to state in the model card, by its identifier on the hub; by default, the
            teacher's.
        base_model: Hub ID of the teacher to state in the model card, for a teacher from a folder.
        push_to_hub: Hub repository to upload the finished folder to.

    Raises:
        InputError: a model or a card of it that cannot be read, options that do not go together, a head that the
            format has no place for, a package that the format needs and that is not installed, scores of other encoders
            only, an output folder in use, a hub that does not take it.
    """
    check_options(export, dict(locals()))
    _check(format, quantize, hidden_states, length_aware)
    given = {"language": language, "datasets": datasets, "license": license, "base_model": base_model}
    facts = {name: said_words(name, text) for name, text in given.items()}
    refuse_existing(output)
    loaded = load_model(model, length_aware=length_aware, target_lang=target_lang)
    refuse_other_rates(loaded.encoder.config.sampling_rate, model)
    if format == "s3prl" and loaded.head is not None:
        logger.warning(
            "warning: %s: its %s head is left out; s3prl has heads of its own", model, loaded.head.config.kind
        )
        loaded.head = None
    if hidden_states is None and loaded.head is None:
        hidden_states = "all"
    card = card_of(loaded, model, scores)
    put_facts(card.data, facts)
    if license is not None:
        set_section(card, LICENSE, f"The weights: `{license}`.")
    folder = Path(output)
    if format in TRACED:
        more = ", then compared with torch and timed" if format == "onnx" else ""
        logger.info("the model is traced and written%s: this takes a while", more)
    with refuse_full_disk(folder), atomic_folder(folder) as temporary:
        measurements = _save(loaded, temporary, model, format, quantize, hidden_states)
        adapt_card(card, loaded, format, quantize, hidden_states, push_to_hub, measurements)
        if (temporary / CODE_LICENSE).exists():
            set_section(card, "License of the code", OF_THE_CODE, after=LICENSE)
        write_card(card, temporary / "README.md")
    return Export(
        folder=folder,
        format=format,
        size=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        measurements=measurements,
        address=None if push_to_hub is None else _push(folder, push_to_hub),
    )


def _check(format: str, quantize: str | None, hidden_states: str | None, length_aware: bool) -> None:
    if quantize and format != "onnx":
        raise InputError(f"quantize goes with format onnx only; {format} keeps the model's weights")
    if hidden_states == "last" and format not in TRACED:
        raise InputError(
            f"hidden_states goes with formats {' and '.join(TRACED)} only; {format} has them all on demand"
        )
    if length_aware and format == "torchaudio":
        raise InputError("length_aware does not go with format torchaudio: its layout cannot express it")
    if format == "onnx":
        from .onnx_model import need_onnx

        need_onnx()


def _save(
    model: SpeechModel,
    folder: Path,
    source: str,
    format: Format,
    quantize: Rounding | None,
    hidden_states: HiddenStates | None,
) -> tuple[Measurement, ...]:
    if format == "transformers":
        from .hugging_face import save_transformers

        save_transformers(model, folder, source)
    elif format == "torchaudio":
        from ..checkpoints.torchaudio import save_torchaudio

        save_torchaudio(model.encoder, folder / "model.pth", model.head, model.files)
    elif format == "s3prl":
        from .s3prl import save_s3prl

        save_s3prl(model.encoder, folder)
    else:
        _write_beside(model, folder, source)
    if format == "torch-export":
        from .torch_export import save_torch_export

        save_torch_export(model, folder, hidden_states)
    elif format == "onnx":
        from .onnx_model import save_onnx

        return save_onnx(model, folder, hidden_states, quantize)
    return ()


def _write_beside(model: SpeechModel, folder: Path, source: str) -> None:
    """What the outputs of a traced program stand for: head.json and the files of tokenizer and feature extractor."""
    if model.head is None:
        return
    save_head_config(model.head.config, folder)
    # The program normalizes waveforms by itself.
    files = processor_files(model.files, model.head.config, model.encoder.config, normalizes=False, source=source)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _push(folder: Path, repository: str) -> str:
    """Upload a folder; its address on the hub."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    # Without a network the errors are those of the HTTP library, which is another one in every version of the hub's.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} is complete but could not be uploaded to {repository}: {reason}") from None
    return str(address)
