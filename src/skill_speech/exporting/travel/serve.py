# SPDX-License-Identifier: Apache-2.0
"""Serve this folder to a browser on this machine: python3 serve.py [PORT], then http://localhost:8000.

As python3 -m http.server, with the two headers by which a browser lets a page compute with several threads.
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, isolated from what other sites send."""

    def end_headers(self) -> None:
        """Add the headers to every answer."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(Path(__file__).parent))) as server:
        print(f"http://localhost:{port}", flush=True)
        server.serve_forever()
