"""The pages of the repository as programs: their fenced blocks, run in order, and their links.

In: Markdown. Out: `Block`s, run in one namespace as a reader would run them. The one thing to know:
a `text` block must be part of what the last python or bash block before it printed.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import CodeType

from markdown_it import MarkdownIt

__all__ = ["ROOT", "Block", "blocks_of", "links_of", "run_blocks"]

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its section, language, first line, text, and the file it stands in."""

    section: str
    language: str
    line: int
    text: str
    file: str = "README.md"

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def compiled(self) -> CodeType:
        """Its bytecode, whose tracebacks name the lines of the page."""
        return compile("\n" * (self.line - 1) + self.text, self.file, "exec")


def blocks_of(page: Path) -> Iterator[Block]:
    section = ""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            section = tokens[i + 1].content
        elif token.type == "fence":
            assert token.map is not None
            file = page.relative_to(ROOT).as_posix()
            yield Block(section, token.info, token.map[0] + 2, token.content, file)


def links_of(page: Path) -> list[str]:
    """Where the links and images of a page lead, those to other sites left out."""
    found = [
        str(child.attrGet("href" if child.type == "link_open" else "src"))
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8"))
        for child in token.children or []
        if child.type in ("link_open", "image")
    ]
    return [link for link in found if "://" not in link]


def run_blocks(blocks: Iterable[Block]) -> None:
    """Run python blocks here, in one namespace, and bash blocks in a shell that finds our command.

    Raises whatever a python block raises, and AssertionError when a bash block fails or a text
    block is not what was printed.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    printed = ""
    for block in blocks:
        if block.language == "text":
            assert block.text.rstrip("\n") in printed, f"{block.where}: printed was\n{printed}"
        elif block.language == "python":
            with redirect_stdout(StringIO()) as out:
                exec(block.compiled(), namespace)
            printed = out.getvalue()
        else:
            assert block.language == "bash", f"{block.where}: nothing runs {block.language!r}"
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=120,
            )
            printed = done.stdout + done.stderr
            assert done.returncode == 0, f"{block.where}:\n{printed}"
            importlib.invalidate_caches()  # it may have written a module
