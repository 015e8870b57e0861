"""The page beside an ONNX model, in Chromium."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch

from skill_speech.exporting import export
from skill_speech.exporting.travel import serve
from tests.exported_models import pruned_encoder

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()

# A person in front of the page: waits until it is ready, chooses a file, and hands over what can be downloaded.
PERSON = """<!doctype html><iframe src="index.html"></iframe><script type="module">
const page = () => document.querySelector("iframe").contentDocument;
const until = async (done) => { while (!done()) await new Promise((go) => setTimeout(go, 50)); };
const status = () => page()?.getElementById("status")?.value ?? "";
await until(() => /^ready|cannot/.test(status()));
const files = new DataTransfer(), input = page().getElementById("file");
files.items.add(new File([await (await fetch("speech.wav")).arrayBuffer()], "speech.wav"));
input.files = files.files;
input.dispatchEvent(new Event("change"));
await until(() => /frames|cannot/.test(status()));
const link = page().getElementById("download");
const body = link.hidden ? "" : await (await fetch(link.href)).arrayBuffer();
const { width, height } = page().getElementById("picture");
const headers = { "X-Status": status(), "X-Picture": `${width} x ${height}` };
await fetch("/result", { method: "POST", body, headers });
</script>"""


class Server(ThreadingHTTPServer):
    """Serves a folder, and waits for what the page makes."""

    def __init__(self, folder, handler) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(handler, directory=folder))
        self.arrived = threading.Event()
        self.status, self.picture, self.body = "", "", b""


class Plain(SimpleHTTPRequestHandler):
    """As python3 -m http.server, and takes the result."""

    server: Server

    def do_POST(self) -> None:
        self.server.status, self.server.picture = self.headers["X-Status"], self.headers["X-Picture"]
        self.server.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, *arguments) -> None:
        pass


class Isolated(Plain, serve.Handler):
    """As serve.py, which lies beside the page."""


@pytest.fixture
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here")
    return found


@pytest.fixture
def npm():
    if shutil.which("npm") is None:
        pytest.skip("no npm here")

    def install(folder) -> None:
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip().splitlines()[-1]}")

    return install


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "tolerance", "handler"), [(None, 1e-5, Plain), (None, 1e-5, Isolated), ("int8", 0.05, Isolated)]
)
def test_the_page_encodes_a_wav_file_in_chromium(quantize, tolerance, handler, chromium, npm, tmp_path):
    encoder = pruned_encoder("wavlm", input_normalization=True)
    encoder.save_pretrained(tmp_path / "model")
    page = tmp_path / "page"
    export(str(tmp_path / "model"), str(page), format="onnx", quantize=quantize)
    npm(page)
    rng = np.random.default_rng(0)
    soundfile.write(page / "speech.wav", rng.uniform(-0.5, 0.5, 12_345), 16_000, subtype="PCM_16")
    (page / "person.html").write_text(PERSON)

    server = Server(page, handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/person.html"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    browser = subprocess.Popen(
        [chromium, *FLAGS, profile, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert server.arrived.wait(timeout=120), "the page did not finish"
    finally:
        browser.terminate()
        browser.wait()
        server.shutdown()

    waveform, _ = soundfile.read(page / "speech.wav", dtype="float32")
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(waveform)[None]).last_hidden_state_BTD[0].numpy()
    assert f"{len(wanted)} frames of {wanted.shape[1]} numbers: 0.77 s of audio" in server.status
    threads = min(os.cpu_count() or 1, 8) if handler is Isolated else 1
    wanted_device = f"WebAssembly, {threads} thread{'s' * (threads > 1)}"
    factor = re.search(rf"real-time factor ([0-9.]+) \({wanted_device}\)$", server.status)
    assert factor, server.status
    seconds = re.search(r"s of audio in ([0-9.]+) s", server.status)
    assert float(factor[1]) == pytest.approx(float(seconds[1]) / (12_345 / 16_000), abs=0.01)
    assert server.picture == f"{len(wanted)} x {wanted.shape[1]}"
    made = np.frombuffer(server.body, "<f4").reshape(wanted.shape)
    assert np.linalg.norm(made - wanted) < tolerance * np.linalg.norm(wanted)
