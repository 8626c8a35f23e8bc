"""The README is right: its blocks run as printed, in order, and its links lead somewhere.

Every python and bash block of a section runs in one namespace and one empty folder, as a reader
would run them who starts at the section's heading.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest
from markdown_it import MarkdownIt

README = Path(__file__).parents[1] / "README.md"
SET_UP = "make demo\nmake test\n"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: the section it stands in, its language, its first line and its text."""

    section: str
    language: str
    line: int
    text: str

    def compiled(self) -> CodeType:
        """Its bytecode, whose tracebacks name the lines of the README."""
        return compile("\n" * (self.line - 1) + self.text, str(README), "exec")


def blocks_of(markdown: str) -> Iterator[Block]:
    section = ""
    tokens = MarkdownIt().parse(markdown)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            section = tokens[i + 1].content
        elif token.type == "fence":
            assert token.map is not None
            yield Block(section, token.info, token.map[0] + 2, token.content)


BLOCKS = list(blocks_of(README.read_text(encoding="utf-8")))


def run_blocks(blocks: list[Block]) -> None:
    """Run python blocks here, in one namespace, and bash blocks in a shell that finds our command.

    Raises whatever a python block raises, and AssertionError when a bash block fails.
    """
    namespace: dict[str, object] = {"__name__": "readme"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for block in blocks:
        if block.language == "python":
            exec(block.compiled(), namespace)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=120,
            )
            where = f"README.md:{block.line}"
            assert done.returncode == 0, f"{where}:\n{done.stdout}{done.stderr}"
            importlib.invalidate_caches()  # it may have written a module


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to stand in, whose modules can be imported and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]


def test_opens_with_the_two_commands() -> None:
    assert (BLOCKS[0].section, BLOCKS[0].language) == ("symcompile", "bash")
    assert BLOCKS[0].text == SET_UP


def test_shows_the_three_uses_and_no_block_that_goes_untested() -> None:
    shown = [(block.section, block.language) for block in BLOCKS[1:]]
    assert shown == [
        ("Compile a layer", "python"),
        ("Compile a layer", "python"),
        ("Compile a layer", "python"),
        ("Export the source", "bash"),
        ("Export the source", "python"),
        ("Export the source", "python"),
        ("Benchmark the backends", "python"),
    ]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    "section", ["Compile a layer", "Export the source", "Benchmark the backends"]
)
def test_blocks_run_as_printed(section: str) -> None:
    run_blocks([block for block in BLOCKS if block.section == section])


@pytest.mark.usefixtures("empty_folder")
def test_a_block_that_fails_is_seen() -> None:
    with pytest.raises(ZeroDivisionError):
        run_blocks([Block("", "python", 1, "x = 0"), Block("", "python", 2, "1 / x")])
    with pytest.raises(AssertionError, match=r"README\.md:3"):
        run_blocks([Block("", "bash", 3, "false\ntrue\n")])


def test_links_lead_to_files_of_the_repository() -> None:
    links = [
        str(child.attrGet("href"))
        for token in MarkdownIt().parse(README.read_text(encoding="utf-8"))
        for child in token.children or []
        if child.type == "link_open"
    ]
    local = [link for link in links if "://" not in link]
    assert "LICENSE" in local
    assert [link for link in local if not (README.parent / link.partition("#")[0]).exists()] == []
