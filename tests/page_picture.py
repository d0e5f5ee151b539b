"""Take the picture of the docs: `python -m tests.page_picture docs/page.png [MODEL.gguf]`."""

import sys
import tempfile
from pathlib import Path

from gmoe.library.demo import bundle
from gmoe.options import RuntimeOptions
from tests.browser import browser
from tests.factory import Shape, write_model
from tests.live_server import live_server
from tests.test_server_page import talk

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        shape = Shape(layer=16, expert=48, used=4)
        found = [Path(word) for word in sys.argv[2:3]]
        files = found or ([] if bundle() else [write_model(home / "random-weights.gguf", shape=shape)])
        with live_server(home, files, RuntimeOptions(context=512)) as live, browser(1280, 860) as window:
            talk(window, live.url, "Once upon a time")
            window.wait("return document.querySelector('#rate').innerText !== '–'")
            Path(sys.argv[1]).write_bytes(window.picture())
