# SPDX-License-Identifier: Apache-2.0
"""Encode a WAV file without torch: python encode.py speech.wav writes speech.npz, and prints the text or the label."""

import json
import re
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

if len(sys.argv) != 2:
    sys.exit("usage: python encode.py SPEECH.wav")
path, here = Path(sys.argv[1]), Path(__file__).parent
try:
    file = wave.open(str(path), "rb")  # noqa: SIM115
except (OSError, EOFError, RuntimeError, wave.Error) as error:
    sys.exit(f"{path}: give a WAV file of 16 kHz and 16 bits ({error})")
with file:
    if (file.getframerate(), file.getsampwidth()) != (16_000, 2):
        sys.exit(f"{path}: give a WAV file of 16 kHz and 16 bits")
    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
waveform = samples.mean(axis=1, dtype=np.float32) / 32768
if len(waveform) < 400:
    sys.exit(f"{path}: {len(waveform)} samples; the encoder needs 400 (25 ms)")


def load(name: str) -> dict:
    """A file of this folder, empty if there is none."""
    return json.loads((here / name).read_text(encoding="utf-8")) if (here / name).exists() else {}


session = onnxruntime.InferenceSession(here / "model.onnx")
names = [output.name for output in session.get_outputs()]
arrays = session.run(names, {"waveforms": waveform[None], "lengths": np.array([len(waveform)])})
np.savez(path.with_suffix(".npz"), **dict(zip(names, arrays)))
head = load("head.json")
said = f"{path.with_suffix('.npz')}: {names[0]} {arrays[0].shape}, {len(names)} arrays"
print(said, file=sys.stderr if head else sys.stdout)  # of a recognizer or classifier the text or label alone

if head.get("kind") == "ctc":  # the most probable token of every frame; repeats are one, the blank is nothing
    tokens, settings = {number: token for token, number in load("vocab.json").items()}, load("tokenizer_config.json")
    if not tokens:
        sys.exit("there is no vocab.json here: the text is unknown")
    best = arrays[0][0].argmax(-1)
    kept = [tokens.get(one, "") for one, last in zip(best, [-1, *best]) if one != last and one != head["blank"]]
    spoken = [" " if token == (settings.get("word_delimiter_token") or "|") else token for token in kept]
    text = "".join(token for token in spoken if not re.fullmatch(r"<.+>|\[.+\]", token))
    print(" ".join((text.lower() if settings.get("do_lower_case") else text).split()))
elif head.get("kind") == "sequence":
    best = int(arrays[0][0].argmax())
    print(head["labels"][best] if head["labels"] else best, *arrays[0][0].round(3))
