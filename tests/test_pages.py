"""The pages: every link names something that exists, in the repository's view and in the site of `make docs`."""

from __future__ import annotations

import http.server
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mkdocs.config import load_config
from mkdocs.structure.files import File, Files, get_files
from mkdocs.structure.pages import Page

import skill_speech
from lab import pages
from tests import chromium

ROOT = Path(__file__).parents[1]
WRITTEN = sorted({*ROOT.glob("docs/**/*.md"), *(ROOT / path for path in pages.PAGES)})
MARKDOWN = MarkdownIt("commonmark").enable("table")
CODE = ("src/skill_speech/**/*.py", "lab/**/*.py", "lab/**/*.yaml", "benchmarks/*.py", "recipes/*.yaml", "Makefile")


def links(text: str) -> Iterator[str]:
    """What the links and pictures of a page name, as CommonMark reads them."""
    for block in MARKDOWN.parse(text):
        for token in block.children or ():
            if place := token.attrGet("href") or token.attrGet("src"):
                yield str(place)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    tokens, counts = MARKDOWN.parse(text), Counter[str]()
    for heading, inline in pairwise(tokens):
        if heading.type == "heading_open":
            words = "".join(part.content for part in inline.children or () if part.type in ("text", "code_inline"))
            counts[re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")] += 1
    return {f"{name}-{number}" if number else name for name in counts for number in range(counts[name])}


def test_headings_are_named_as_github_names_them() -> None:
    assert anchors("# A `--b`, c\n## d\n## d\n\n```\n# e\n```\n") == {"a---b-c", "d", "d-1"}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_anchor_names_something_that_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_pages_that_code_names_exist() -> None:
    named = {
        (file.relative_to(ROOT), path)
        for pattern in CODE
        for file in ROOT.glob(pattern)
        for path in re.findall(r"\bdocs/[\w/-]+\.md\b", file.read_text(encoding="utf-8"))
    }
    assert named
    assert [one for one in named if not (ROOT / one[1]).exists()] == []


@pytest.fixture(scope="module")
def files() -> Files:
    """What mkdocs finds, with what the hook adds."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    return config.plugins.run_event("files", get_files(config), config=config)


def turned(text: str, place: str, files: Files) -> str:
    """What the hook makes of a page's text."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    file = files.get_file_from_path(place)
    assert isinstance(file, File)
    return pages.on_page_markdown(text, Page(None, file, config), config, files)


@pytest.mark.parametrize(
    ("place", "text", "expected"),
    [
        ("results.md", "[a](method.md#outputs)", "[a](method.md#outputs)"),
        ("results.md", "[a](#equal-size)", "[a](#equal-size)"),
        ("results.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("results.md", "[a](../lab/study/study.yaml)", "[a](https://example.org/r/blob/HEAD/lab/study/study.yaml)"),
        ("results.md", "[a](../lab/results)", "[a](https://example.org/r/tree/HEAD/lab/results)"),
        ("results.md", "![a](../lab/results/study/fidelity.png)", "![a](lab/results/study/fidelity.png)"),
        ("results.md", "[a](../nothing.py)", "[a](../nothing.py)"),
        ("results.md", "`[a](../lab)` [a](https://x.org/y)", "`[a](../lab)` [a](https://x.org/y)"),
        ("reference/models.md", "[a](../../README.md#use-it)", "[a](../overview.md#use-it)"),
        ("lab.md", "[a](../docs/results.md#equal-size)", "[a](results.md#equal-size)"),
        ("lab.md", "[a](study/study.yaml)", "[a](https://example.org/r/blob/HEAD/lab/study/study.yaml)"),
        ("overview.md", "![a](docs/images/similarity.png)", "![a](images/similarity.png)"),
    ],
)
def test_links_that_leave_the_pages_are_turned(
    place: str, text: str, expected: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "repository", lambda: "https://example.org/r")
    assert turned(text, place, files) == expected


def test_without_an_address_of_the_repository_a_link_is_the_name_of_its_file(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "repository", lambda: "")
    text = "[the records](../lab/results), [lab/study/study.yaml](../lab/study/study.yaml)"
    assert turned(text, "results.md", files) == "the records (`lab/results`), lab/study/study.yaml"


def build(settings: Path | str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as the Makefile does."""
    command = re.search(r"mkdocs (build.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert command is not None
    words = [
        sys.executable,
        "-m",
        "mkdocs",
        *command[1].split(),
        "--config-file",
        str(settings),
        "--site-dir",
        str(folder),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_dead_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[b](nothing.md) [c](#nowhere)\n")
    inherited = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nhooks: []\nextra_css: []\nnav: [index.md]\n"
    (tmp_path / "mkdocs.yml").write_text(inherited)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "nothing.md" in done.stderr
    assert "#nowhere" in done.stderr
    assert "2 warnings" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = build("mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class Seen(HTMLParser):
    """The elements of a page, what it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.loads, self.names = Counter[str](), list[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements[tag] += 1
        self.names.add(values.get("id") or "")
        place = values.get("href") if tag == "link" else values.get("src")
        self.loads += [place] if place else []


def built(site: Path, place: str) -> Path:
    """The file of a page of the site."""
    return site / "index.html" if place == "index.md" else site / place.removesuffix(".md") / "index.html"


@pytest.mark.slow
def test_the_site_loads_nothing_from_outside(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not [place for place in Seen(page.read_text(encoding="utf-8")).loads if re.match(r"\w+:|//", place)]
    for style in site.rglob("*.css"):
        found = re.findall(r"url\([\"']?([^\"')]+)|@import", style.read_text(encoding="utf-8"))
        assert not [place for place in found if not place.startswith("data:") and re.match(r"\w+:|//", place)]


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    texts = [page.read_text(encoding="utf-8") for page in (site / "reference").rglob("*.html")]
    names = [name for text in texts for name in Seen(text).names]
    for name in set(skill_speech.__all__) - {"__version__"}:
        assert names.count(f"skill_speech.{name}") == 1, name


@pytest.mark.slow
def test_the_site_reads_markdown_as_the_repository_does(site: Path) -> None:
    """Lists, tables and code blocks: mkdocs needs blank lines and four columns where GitHub does not."""
    docs = ROOT / "docs"
    shown = pages.PAGES | {
        f"docs/{name}": name for name in (path.relative_to(docs).as_posix() for path in docs.glob("*.md"))
    }
    for path, place in shown.items():
        there = Seen(MARKDOWN.render((ROOT / path).read_text(encoding="utf-8"))).elements
        article = re.search(r"<article.*</article>", built(site, place).read_text(encoding="utf-8"), re.DOTALL)
        assert article is not None
        here = Seen(article[0]).elements
        for element in ("ul", "ol", "li", "table", "tr", "td", "pre", "h2", "h3", "img", "strong", "em"):
            assert here[element] == there[element], (path, element)


POOR = """(async () => {
  await new Promise(done => setTimeout(done, 500));
  const parts = color => { const [r, g, b, a] = color.match(/[\\d.]+/g).map(Number); return [r, g, b, a ?? 1]; };
  const over = (top, below) => [0, 1, 2].map(at => top[at] * top[3] + below[at] * (1 - top[3]));
  const light = color => color.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const paper = node => node ? over(parts(getComputedStyle(node).backgroundColor), paper(node.parentElement))
    : [255, 255, 255];
  const poor = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    const style = getComputedStyle(node);
    if (!own || !node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const below = paper(node), [a, b] = [over(parts(style.color), below), below].map(light);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < (large ? 3 : 4.5)) poor.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...poor];
})()"""
"""Texts whose contrast is less than WCAG AA asks for; half a second later, when the page has loaded its index."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize(
    ("place", "width", "dark"),
    [("", 1280, False), ("results/", 360, False), ("reference/compressing/", 768, True), ("python/", 1600, True)],
)
def test_chromium_shows_a_page_without_complaint_or_overflow(address: str, place: str, width: int, dark: bool) -> None:
    seen = chromium.look_at(address + place, width, dark=dark, evaluate=POOR)
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert seen.scroll_width <= width
    assert seen.found == []
