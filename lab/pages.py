"""The documentation site, `make docs`: what mkdocs does not do by itself, as the hook that mkdocs.yml names.

Pages are written for the repository, where a link may leave docs/. In the site such a link leads to the same
thing: to a page, where the file is one of PAGES; to a copy, where it is a picture; and otherwise to the file in the
repository, whose address is `Repository` among the project's URLs in pyproject.toml. Where none is given, a link
becomes the name of its file.
"""

from __future__ import annotations

import os.path
import re
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import quote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
PAGES = {
    "README.md": "overview.md",  # index.md is the first page
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "lab/README.md": "lab.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Files outside docs/ that are pages of the site → where the site has them."""

PICTURES = {".png", ".svg"}
LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|(?P<text>\[(?P<words>[^][]*)\])\((?P<target>[^()\s:]+)\)",
    re.DOTALL | re.MULTILINE,
)
"""A link or picture to a file; of code, in which there are none, all of it."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the pictures outside docs/ that a page shows."""
    for path, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        for link in LINK.finditer(page.content_string):
            path, _ = _in_repository(page, link["target"] or "")
            if Path(path).suffix in PICTURES and not path.startswith(f"{DOCS}/") and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links that leave docs/."""

    def turned(link: re.Match[str]) -> str:
        if link["code"] or link["target"].startswith("#"):
            return link[0]
        path, anchor = _in_repository(page.file, link["target"])
        inside = PAGES.get(path, path.removeprefix(f"{DOCS}/"))
        if inside in files.src_uris:
            start = os.path.dirname(page.file.src_uri)
            return f"{link['text']}({os.path.relpath(inside, start or '.')}{anchor})"
        if not path or not (ROOT / path).exists():
            return link[0]  # mkdocs says that there is nothing
        if repository():
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"{link['text']}({repository()}/{kind}/HEAD/{quote(path)}{anchor})"
        return link["words"] if path in link["words"] else f"{link['words']} (`{path}`)"

    return LINK.sub(turned, markdown)


@cache
def repository() -> str:
    """Where the repository can be read, without a slash at the end; empty if pyproject.toml does not say it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", "")).rstrip("/")


def _in_repository(page: File, target: str) -> tuple[str, str]:
    """What a page's link names, as a path from the repository's root, and its anchor."""
    here = Path(page.abs_src_path or "").relative_to(ROOT).parent.as_posix()
    path, mark, anchor = target.partition("#")
    return os.path.normpath(os.path.join(here, path)) if path else "", mark + anchor
