"""The README is right: its blocks run as printed, in order, and its links lead somewhere.

Every python and bash block of a section runs in one namespace and one empty folder, as a reader
would run them who starts at the section's heading.
"""

from __future__ import annotations

import pytest

from tests.pages import ROOT, Block, blocks_of, links_of, run_blocks

README = ROOT / "README.md"
SET_UP = "make demo\nmake test\n"

BLOCKS = list(blocks_of(README))


def test_opens_with_the_two_commands() -> None:
    assert (BLOCKS[0].section, BLOCKS[0].language) == ("symcompile", "bash")
    assert BLOCKS[0].text == SET_UP


def test_shows_the_three_uses_and_no_block_that_goes_untested() -> None:
    shown = [(block.section, block.language) for block in BLOCKS[1:]]
    assert shown == [
        ("Compile a layer", "python"),
        ("Compile a layer", "python"),
        ("Compile a layer", "python"),
        ("Build a network", "python"),
        ("Export the source", "bash"),
        ("Export the source", "python"),
        ("Export the source", "python"),
        ("Benchmark the backends", "python"),
    ]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize(
    "section",
    ["Compile a layer", "Build a network", "Export the source", "Benchmark the backends"],
)
def test_blocks_run_as_printed(section: str) -> None:
    run_blocks([block for block in BLOCKS if block.section == section])


@pytest.mark.usefixtures("empty_folder")
def test_a_block_that_fails_is_seen() -> None:
    with pytest.raises(ZeroDivisionError):
        run_blocks([Block("", "python", 1, "x = 0"), Block("", "python", 2, "1 / x")])
    with pytest.raises(AssertionError, match=r"README\.md:3"):
        run_blocks([Block("", "bash", 3, "false\ntrue\n")])
    with pytest.raises(AssertionError, match="printed was\n2"):
        run_blocks([Block("", "python", 1, "print(1 + 1)"), Block("", "text", 4, "3\n")])


def test_links_lead_to_files_of_the_repository() -> None:
    local = links_of(README)
    assert "LICENSE" in local
    assert [link for link in local if not (ROOT / link.partition("#")[0]).exists()] == []
