"""Encode a WAV file without torch: python encode.py speech.wav writes speech.npz beside it."""

import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

path = Path(sys.argv[1])
with wave.open(str(path), "rb") as file:
    if (file.getframerate(), file.getsampwidth()) != (16_000, 2):
        sys.exit(f"{path}: give a WAV file of 16 kHz and 16 bits")
    samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
waveform = samples.mean(axis=1, dtype=np.float32) / 32768

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
names = [output.name for output in session.get_outputs()]
arrays = session.run(names, {"waveforms": waveform[None], "lengths": np.array([len(waveform)])})
np.savez(path.with_suffix(".npz"), **dict(zip(names, arrays)))
print(f"{path.with_suffix('.npz')}: last_hidden_state {arrays[0].shape}, {len(names)} arrays")
