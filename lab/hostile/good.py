"""What is good, and command lines that read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .values import GOOD


def make_good(folder: Path) -> None:
    """A teacher, checkpoints of every format, speech, manifests, shards, a corpus and a finished run."""
    import numpy as np
    import soundfile
    import torch
    import transformers

    from skill_speech import Encoder, analyze, compress, evaluate, prepare
    from skill_speech.checkpoints import save_torchaudio
    from skill_speech.compression import AnalysisConfig
    from skill_speech.distillation import StageConfig
    from skill_speech.encoder import hubert_config

    torch.manual_seed(0)
    config = hubert_config(hidden_size=24, num_heads=2, depth=2, units=8, channels=8, positional_groups=2)
    encoder = Encoder(config.replace(positional_kernel=4))
    encoder.save_pretrained(folder / "teacher")
    save_torchaudio(encoder, folder / "student.pth")
    tiny = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8}
    tiny |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    for name, kind in (
        ("hubert", "Hubert"),
        ("wavlm", "WavLM"),
        ("wav2vec2", "Wav2Vec2"),
        ("data2vec", "Data2VecAudio"),
    ):
        shape = getattr(transformers, f"{kind}Config")(**tiny)
        getattr(transformers, f"{kind}Model")(shape).save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    noise = 0.1 * np.random.default_rng(0).standard_normal(40_000)
    for place in (*(f"speech/{number}.wav" for number in range(5)), *(f"corpora/{name}" for name in COMMANDS)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / place, noise[: 40_000 if "noise" in place or "speech/" in place else 16_000], 16_000)
    for name, words in (("validation", "b"), ("testing", "c")):
        lines = "".join(f"{word}/{words}_nohash_0.wav\n" for word in ("yes", "happy"))
        (folder / f"corpora/speech_commands_v0.01/{name}_list.txt").write_text(lines)
    prepare(folder / "speech", folder / "cuts.jsonl")
    prepare(folder / "speech", folder / "shards", shards=True)
    stage = StageConfig(steps=1, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
    settings = {"clusters": 2, "analysis": AnalysisConfig(calibration_seconds=5, batch_seconds=5, batch_frames=64)}
    source = str(folder / "teacher"), str(folder / "speech")
    analyze(*source, str(folder / "analyzed"), **settings)
    compress(
        *source,
        str(folder / "run"),
        stage1=stage,
        stage2=stage,
        sparsity=0.5,
        validation_seconds=0.0,
        **settings,
        precision="float32",
    )
    evaluate([str(folder / "run/model")], str(folder / "corpora"), str(folder / "run/evaluation"), tasks="ks", steps=1)
    shutil.copytree(folder / "run", folder / "other")


COMMANDS = (
    *(f"speech_commands_v0.01/{word}/{who}_nohash_0.wav" for word in ("yes", "happy") for who in "abc"),
    "speech_commands_v0.01/_background_noise_/pink_noise.wav",
    *(f"speech_commands_test_set_v0.01/{label}/d_nohash_1.wav" for label in ("yes", "_unknown_", "_silence_")),
)
PREPROCESSOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16_000,
}
BASE: dict[str, tuple[str, ...]] = {
    "prepare": (f"{GOOD}/speech", "--output", "out.jsonl"),
    "analyze": (
        *("--teacher", f"{GOOD}/teacher", "--data", f"{GOOD}/speech", "--output", "out", "--clusters", "2"),
        *("--analysis.calibration_seconds", "5", "--analysis.batch_seconds", "5", "--analysis.batch_frames", "64"),
    ),
    "evaluate": (
        *(f"{GOOD}/teacher", "--data", f"{GOOD}/corpora", "--output", "out", "--tasks", "ks", "--steps", "1"),
        *("--cache_gb", "0.1"),
    ),
    "profile": (f"{GOOD}/teacher", "--seconds", "1", "--threads", "1"),
    "export": (f"{GOOD}/teacher", "--output", "out", "--format", "torchaudio"),
    "import": (f"{GOOD}/teacher", "--output", "out"),
    "report": ("run",),
}
STAGES = tuple(
    f"--{stage}.{name}={value}"
    for stage in ("stage1", "stage2")
    for name, value in (("steps", 1), ("warmup_steps", 1), ("sparsity_steps", 1), ("batch_seconds", 5))
)
BASE["compress"] = (
    *BASE["analyze"],
    *STAGES,
    *("--sparsity", "0.5", "--validation_seconds", "0", "--precision", "float32"),
)
