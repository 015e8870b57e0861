"""Compare the layers of two encoders on the same audio: which layer of one is like which layer of the other?

    python examples/compare_encoders.py microsoft/wavlm-base-plus facebook/hubert-base-ls960 FOLDER_OF_AUDIO

Prints the closest layer of each layer, and writes a map of the linear CKA of every pair. Both encoders need the same
frame rate, which is 50 a second in nearly all of them. A student and its teacher are two encoders, too.
"""

import argparse

import matplotlib.pyplot as plt
import torch

from skill_speech import load_encoder
from skill_speech.data import audio_loader, evaluation_batches, open_cuts
from skill_speech.similarity import MinibatchCKA

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("first", help="hub ID, folder or file")
parser.add_argument("second", help="the other encoder")
parser.add_argument("data", help="folder of audio, or any form that `prepare` accepts")
parser.add_argument("--seconds", type=float, default=300, help="audio to compare on (default: %(default)g)")
parser.add_argument("--output", default="layers.png", help="picture to write (default: %(default)s)")
arguments = parser.parse_args()


@torch.inference_mode()
def similarity() -> torch.Tensor:
    """CKA of layers h_0 … h_L of the first encoder (rows) with those of the second (columns)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, second = (load_encoder(source).to(device).eval() for source in (arguments.first, arguments.second))
    cuts = open_cuts(arguments.data)
    batches = evaluation_batches(cuts, batch_seconds=30, limit_seconds=arguments.seconds, seed=0)
    cka = MinibatchCKA(batch_frames=512)
    for batch in audio_loader(batches):
        heard = batch.waveforms_BT.to(device), batch.lengths_B.to(device)
        one, other = first(*heard), second(*heard)
        # Layers of both in one list: the estimator compares every pair, whatever their widths.
        cka.update([*one.layers, *other.layers], one.lengths_B)
    rows = len(first.layers) + 1  # h_0, the output of the feature projection, comes before the layers
    return cka.compute()[:rows, rows:]


cka_LM = similarity()
for row, values in enumerate(cka_LM):
    print(f"h_{row} of the first is closest to h_{int(values.argmax())} of the second: CKA {float(values.max()):.3f}")
figure, axes = plt.subplots(layout="constrained")
image = axes.imshow(cka_LM, vmin=0, vmax=1, origin="lower")
axes.set(xlabel=f"layer of {arguments.second}", ylabel=f"layer of {arguments.first}")
figure.colorbar(image, label="linear CKA")
figure.savefig(arguments.output, dpi=150)
print(arguments.output)
