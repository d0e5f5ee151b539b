"""The page at /: what browsers get and others do not, and the page itself in headless Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gmoe.options import RuntimeOptions
from tests.browser import Browser, browser, chromium
from tests.factory import Shape, write_model
from tests.live_server import Live, live_server

COLOURS = """
    const map = document.querySelector('#heat'), pen = map.getContext('2d')
    const data = pen.getImageData(0, 0, map.width, map.height).data
    return new Set(Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size
"""
HTML = {"accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home = tmp_path_factory.mktemp("home")
    file = write_model(home / "tiny.gguf", shape=Shape(layer=3, expert=16, used=4))
    with live_server(home, [file], RuntimeOptions(context=512)) as live:
        live.never_end("tiny")
        yield live


def test_browsers_get_the_page_and_others_a_line(live: Live) -> None:
    page = live.http.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html") and "<title>gmoe</title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert live.http.get("/").text == "Ollama is running"
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        assert live.http.get(f"/{name}").headers["content-type"].startswith(kind)
        assert "http://" not in live.http.get(f"/{name}").text.replace("http://www.w3.org", "")


def test_the_view_counts_what_was_routed(live: Live) -> None:
    assert live.http.get("/api/experts").json()["models"][0]["model"] == "tiny:latest"
    options = {"num_predict": 20, "temperature": 0}
    live.http.post(
        "/api/generate", json={"model": "tiny", "prompt": "abc", "raw": True, "stream": False, "options": options}
    )
    (view,) = live.http.get("/api/experts").json()["models"]
    assert (view["layers"], view["n_expert"], view["n_expert_used"]) == ([0, 1, 2], 16, 4)
    assert [sum(row) for row in view["counts"]] == [(3 + 19) * 4] * 3  # the last token is not computed
    assert view["resident"] == [[1] * 16] * 3 and view["approximated"] == 0
    assert view["tiers"][0]["bytes"] > 0 and view["tiers"][1]["bytes"] == 0


def test_the_first_answer_after_a_look_is_seen(live: Live) -> None:
    live.lines("/api/generate", {"model": "tiny", "keep_alive": 0})
    assert live.http.get("/api/experts").json()["models"] == []
    live.lines("/api/generate", {"model": "tiny", "prompt": "abc", "options": {"num_predict": 3}})
    (view,) = live.http.get("/api/experts").json()["models"]
    assert all(sum(row) > 0 for row in view["counts"])
    live.never_end("tiny")


@pytest.mark.skipif(not chromium(), reason="no Chromium and ChromeDriver (Debian: chromium chromium-driver)")
def test_a_chat_in_the_page(live: Live, tmp_path: Path) -> None:
    with browser() as window:
        talk(window, live.url, "hello there")
        assert "tokens" in window.text("#messages footer") and "exact" in window.text("#messages footer")
        assert window.text("#hits") == "100 %" and window.text("#approximated") == "0 %"
        window.wait("return document.querySelector('#under').innerText.startsWith('3 layers of 16 experts')")
        assert window.run(COLOURS) > 4
        window.type("#prompt", "and on")
        window.run("document.querySelector('#send').click()")
        window.wait("return document.querySelector('#send').innerText === 'Stop'")
        window.run("document.querySelector('#send').click()")
        window.wait("return document.querySelector('#send').innerText === 'Send'")
        window.run("document.querySelector('#clear').click()")
        assert window.text("#messages") == "" and window.errors() == []


def talk(window: Browser, url: str, prompt: str) -> None:
    """Open the page, ask, and wait for the whole answer."""
    window.open(url)
    window.wait("return document.querySelector('#model').value")
    window.type("#prompt", prompt + "\n")
    window.wait("return document.querySelector('#messages footer')?.innerText", 60)
    window.wait("return document.querySelector('#hits').innerText !== '–'")
