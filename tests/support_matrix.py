"""Which family's encoders can be read from which files: every cell a way to write such a file.

`python -m tests.support_matrix` writes the table into docs/importing.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from skill_speech import load_encoder
from skill_speech.checkpoints import save_torchaudio
from tests.fairseq2_files import fairseq2_weights
from tests.fairseq_files import fairseq_settings, fairseq_weights, wavlm_settings, write_fairseq
from tests.released_models import HUBERTS, fairseq_file, hubert, transformers_folder
from tests.test_torchaudio_checkpoints import torchaudio_weights
from tests.test_wrapped_checkpoints import speechbrain
from tests.transformers_models import LARGE_STYLE, TINY, build, save

PAGE = Path(__file__).parents[1] / "docs" / "importing.md"
MARKS = "<!-- support -->\n", "<!-- end -->"

# One head of 64: how many there are is in no file of TorchAudio or fairseq2.
WIDE = TINY | {"hidden_size": 64, "num_attention_heads": 1}
WAVLM = WIDE | {"num_buckets": 32, "max_bucket_distance": 800}
STACKED = TINY | {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}


class Case(NamedTuple):
    """A model, its folder of Transformers, and where a file of it is to be written."""

    model: Any
    known: Path
    folder: Path


Writer = Callable[[Case], Path]


def wrapped(case: Case) -> Path:
    (case.folder / "config.json").write_bytes((case.known / "config.json").read_bytes())
    content = {"state_dict": {f"module.encoder.{name}": tensor for name, tensor in case.model.state_dict().items()}}
    torch.save(content | {"optimizer_states": []}, case.folder / "last.ckpt")
    return case.folder / "last.ckpt"


def of_fairseq(name: str, layout: str = "omegaconf") -> Writer:
    def write(case: Case) -> Path:
        settings, weights = fairseq_settings(case.model, name), fairseq_weights(case.model)
        return write_fairseq(case.folder / "model.pt", layout, settings, weights, False)

    return write


def of_wavlm(case: Case) -> Path:
    weights = {"cfg": wavlm_settings(case.model, False), "model": fairseq_weights(case.model)}
    torch.save(weights, case.folder / "WavLM.pt")
    return case.folder / "WavLM.pt"


def of_fairseq2(case: Case) -> Path:
    torch.save({"model": fairseq2_weights(case.model)}, case.folder / "model.pt")
    return case.folder / "model.pt"


def of_torchaudio(case: Case) -> Path:
    weights = torchaudio_weights(case.model, wavlm=case.model.config.model_type == "wavlm")
    torch.save(weights, case.folder / "model.pth")
    return case.folder / "model.pth"


def of_dphubert(case: Case) -> Path:
    save_torchaudio(load_encoder(case.known), case.folder / "model.pth")
    return case.folder / "model.pth"


def of_ours(case: Case) -> Path:
    load_encoder(case.known).save_pretrained(case.folder)
    return case.folder


def released(name: str) -> Writer:
    return lambda case: fairseq_file(name, case.folder / "model.pt")


EVERYWHERE: dict[str, Writer] = {
    "skill-speech": of_ours,
    "Transformers": lambda case: case.known,
    "Lightning, DDP": wrapped,
    "SpeechBrain": lambda case: speechbrain(case.folder, case.model, str(case.known)),
}
# Files of code that also has a network of its own for some families.
TORCH: dict[str, Writer] = {"TorchAudio": of_torchaudio, "DPHuBERT, DiariZen": of_dphubert}
FILES = (*EVERYWHERE, "fairseq", "fairseq2", "s3prl", *TORCH)
MODELS: dict[str, tuple[Callable[[], Any], dict[str, Writer]]] = {
    "HuBERT": (
        lambda: build("Hubert", WIDE),
        TORCH | {"fairseq": of_fairseq("hubert"), "s3prl": of_fairseq("hubert", "s3prl")},
    ),
    "WavLM": (lambda: build("WavLM", WAVLM), TORCH | {"fairseq": of_wavlm}),
    "wav2vec 2.0, XLS-R, MMS": (
        lambda: build("Wav2Vec2", WIDE | LARGE_STYLE),
        TORCH | {"fairseq": of_fairseq("wav2vec2"), "fairseq2": of_fairseq2, "s3prl": of_fairseq("wav2vec2", "s3prl")},
    ),
    "Omnilingual wav2vec 2.0": (lambda: build("Wav2Vec2", WIDE | LARGE_STYLE), {"fairseq2": of_fairseq2}),
    "data2vec": (
        lambda: build("Data2VecAudio", STACKED),
        {"fairseq": of_fairseq("data2vec_audio"), "s3prl": of_fairseq("data2vec_audio", "s3prl")},
    ),
    "UniSpeech": (lambda: build("UniSpeech", TINY), {}),
    "UniSpeech-SAT": (lambda: build("UniSpeechSat", TINY), {}),
    "ContentVec": (lambda: hubert("contentvec"), {"fairseq": released("contentvec")}),
    "chinese-hubert": (lambda: hubert("chinese-hubert-large"), {"fairseq": released("chinese-hubert-large")}),
    "mHuBERT-147": (lambda: hubert("mhubert-147"), {"fairseq": released("mhubert-147")}),
    "DistilHuBERT": (lambda: hubert("distilhubert"), {"s3prl": released("distilhubert")}),
    "MERT": (lambda: hubert("mert-95m"), {"fairseq": released("mert-95m")}),
}
ON_THE_HUB = {"ContentVec": "contentvec", "chinese-hubert": "chinese-hubert-large", "MERT": "mert-95m"}
ON_THE_HUB |= {"mHuBERT-147": "mhubert-147", "DistilHuBERT": "distilhubert"}
assert set(ON_THE_HUB.values()) <= set(HUBERTS)


def writers(family: str) -> dict[str, Writer]:
    """The files that a family's encoders are read from."""
    return EVERYWHERE | MODELS[family][1]


def known_folder(family: str, folder: Path) -> Path:
    """The family's model as Transformers has it."""
    if family in ON_THE_HUB:
        return transformers_folder(ON_THE_HUB[family], folder)
    return save(MODELS[family][0](), folder)


def table() -> str:
    """The table of docs/importing.md."""
    rows = [["", *FILES], ["---", *("---" for _ in FILES)]]
    rows += [[family, *("yes" if name in writers(family) else "–" for name in FILES)] for family in MODELS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}{table()}{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")
