"""The site is right: its pages run as printed, all are in it, and it builds without warnings.

Every python and bash block of a page runs in one namespace and one empty folder, from top to
bottom. Blocks of `>>>` are left to pytest's own collection of docs/*.md.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs import draw
from symcompile.diagrams import Diagram, HalfDiagram, basis_size
from tests.pages import ROOT, blocks_of, run_blocks

DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
RUN = [
    page
    for page in PAGES
    if any(
        block.language == "python" and ">>>" not in block.text for block in blocks_of(DOCS / page)
    )
]
PACKAGES = (
    "symcompile",
    "symcompile_torch.data",
    "symcompile_torch.nfn.common",
    "symcompile_torch.nfn.layers",
    "symcompile_torch.nn",
    "symcompile_jax.data",
    "symcompile_jax.functional",
    "symcompile_jax.nn",
    "symcompile_jax.unf",
)
"""What the reference must have every public name of."""

NEEDS = {"migration/nfn.md": "nfn"}
"""What a page needs that may not be installed."""

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="the extra `docs` is not installed"
)


def in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for child in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(child)


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(in_nav(CONFIG["nav"])) == PAGES


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("page", RUN)
def test_blocks_run_as_printed(page: str) -> None:
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    run_blocks(block for block in blocks_of(DOCS / page) if ">>>" not in block.text)


def test_the_tutorial_and_a_page_for_each_use_are_run() -> None:
    uses = [page for page in PAGES if page.startswith(("uses/", "migration/"))]
    assert {"index.md", "tutorial.md", *uses} <= set(RUN)


# -- the drawings --------------------------------------------------------------------------------


def test_drawings_are_those_of_the_script() -> None:
    drawn = {path.name: path.read_text(encoding="utf-8") for path in draw.FOLDER.iterdir()}
    assert drawn == draw.figures(), "run python docs/draw.py"


def test_every_drawing_is_shown() -> None:
    page = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    assert [name for name in draw.figures() if f"(diagrams/{name})" not in page] == []


def test_the_basis_is_drawn_whole() -> None:
    """Each of 15 diagrams has 4 axes; the 6 half-diagrams of 2 stand at two edges."""
    circles = draw.figures()["basis.svg"].count("<circle")
    assert circles == 4 * basis_size([(0, 0)], [(0, 0)]) + 2 * 2 * 6


def test_a_drawing_shows_which_axes_hang_together() -> None:
    straight, crossed = Diagram(2, ((0, 2), (1, 3))), Diagram(2, ((0, 3), (1, 2)))
    assert draw.whole(straight) != draw.whole(crossed)
    apart, joined = Diagram(2, ((0,), (1,))), Diagram(2, ((0, 1),))
    assert draw.whole(joined).body.count("<path") == 1
    assert draw.whole(apart).body.count("<path") == 0
    through = HalfDiagram(propagating=((0,),), closed=())
    closed = HalfDiagram(propagating=(), closed=((0,),))
    assert draw.THROUGH in draw.half(through, out=False).body
    assert draw.CLOSED in draw.half(closed, out=False).body


# -- the site ------------------------------------------------------------------------------------


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        # Nothing may be fetched: whatever tries is sent where nobody listens.
        env={**os.environ, **dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@needs_mkdocs
def test_the_site_builds_without_warnings_and_has_every_page(site: Path) -> None:
    built = [page.relative_to(site).with_suffix(".md").as_posix() for page in site.rglob("*.html")]
    assert sorted(built) == sorted([*PAGES, "404.md"])
    assert (site / "diagrams" / "basis.svg").exists()
    assert not list(site.rglob("*.py*"))


@needs_mkdocs
def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\" >]+)", text
        )
        assert fetched == [], page.name


@needs_mkdocs
def test_the_reference_has_every_public_name(site: Path) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    for path in PACKAGES:
        module = importlib.import_module(path)
        public = [name for name in module.__all__ if name[0] != "_"]
        ids = {name: f"{module.__name__}.{name}" for name in public}
        missing = [
            name
            for name, place in ids.items()
            # A function may be called like the file that it is in.
            if f'id="{place}"' not in text and f'id="{place}.{name}"' not in text
        ]
        assert missing == [], module.__name__


@needs_mkdocs
def test_examples_of_docstrings_are_shown_as_code(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        assert "<blockquote>" not in page.read_text(encoding="utf-8"), page.name
    text = (site / "api" / "compile.html").read_text(encoding="utf-8")
    assert '<span class="gp">' in text


@needs_mkdocs
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[lost](nowhere.md)\n", encoding="utf-8")
    plain = {"site_name": "x", "validation": CONFIG["validation"], "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr
