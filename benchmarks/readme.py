"""The benchmark section of README.md, from committed results.

In: README.md with a comment that names a folder of results. Out: README.md with the plot and the
table of that folder behind the comment. `python benchmarks/readme.py` rewrites it; a test holds the
README to what this file makes of the results, so that neither can change alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from symcompile.bench.compare import Match, Row, matches, rows, totals
from symcompile.bench.machine import one_line
from symcompile.bench.records import Results, read_published
from symcompile.bench.report import ratio_text, unmeasured
from symcompile.files import write_atomically

__all__ = ["section", "updated"]

_ROOT = Path(__file__).parents[1]
_MARKED = re.compile(
    r"(<!-- benchmark results: (?P<folder>[\w./-]+) -->\n).*?(<!-- end of benchmark results -->)",
    re.DOTALL,
)
_WHAT = {"forward": "forward", "train": "forward + backward"}
_FRAMEWORKS = ("torch", "jax")


def updated(text: str, root: Path = _ROOT) -> str:
    """A README with the section that its results give.

    Args:
        text: of the README; it holds the two comments.
        root: what the folder in the first comment is relative to.

    Raises:
        ValueError: a comment is missing, or there are several pairs.
    """
    found = list(_MARKED.finditer(text))
    if len(found) != 1:
        raise ValueError(f"found {len(found)} pairs of comments around results, expected one")
    (mark,) = found
    folder = mark["folder"]
    results = read_published(root / folder / "results.json")
    inside = section(results, folder) if results.measurements else ""
    return text[: mark.end(1)] + inside + text[mark.start(3) :]


def section(results: Results, folder: str) -> str:
    """Plot, table and where they come from, as Markdown."""
    against = matches(results)
    names = [w.name for w in results.workloads() if not w.only_grown]
    columns = [
        (peer, framework)
        for peer in dict.fromkeys(m.peer for m in against)
        for framework in _FRAMEWORKS
        if any((m.peer, m.framework) == (peer, framework) for m in against)
    ]
    header = [
        "workload",
        "",
        *(f"ours on {framework}, ms" for framework in _FRAMEWORKS),
        *(f"{peer} / ours on {framework}" for peer, framework in columns),
    ]
    # That of the rows shown, not of growth that was measured later.
    session = results.session(next(m for m in results.measurements if m.workload["name"] in names))
    setting = session.setting
    lines = [
        "",
        f"![How many times longer peers take]({folder}/ratios.svg)",
        "",
        "Medians over turns, and how many times longer the peer takes, with the least and the "
        "greatest turn in brackets. Ours is the best of its contestants on a framework, nfn the "
        "better of eager and compiled.",
        "",
        _line(header),
        "|---|---|" + "---:|" * (len(header) - 2),
        *(_line(row) for row in _body(results, against, names, columns)),
        "",
        f"On {one_line(session.machine)}; {setting.device}, {setting.dtype}, "
        f"{setting.threads} threads for everyone, by `{session.command}`. "
        f"[Every contestant, first results, memory and rooflines]({folder}/results.md)"
        + (", with what was not measured and why." if unmeasured(results, names) else "."),
        "",
    ]
    return "\n".join(lines)


def _body(
    results: Results,
    against: Sequence[Match],
    names: Sequence[str],
    columns: Sequence[tuple[str, str]],
) -> Iterator[list[str]]:
    every = rows(results)
    for name in names:
        for what, words in _WHAT.items():
            mine = [row for row in every if row.workload.name == name and row.measurement.ours]
            yield [
                name,
                words,
                *(_best(mine, framework, what) for framework in _FRAMEWORKS),
                *(ratio_text(results, against, name, what, *column) for column in columns),
            ]
    means = {(t.what, t.peer, t.framework): t for t in totals(against, names)}
    for what, words in _WHAT.items():
        found = [means.get((what, *column)) for column in columns]
        cells = ["–" if t is None else f"{t.mean:.2f}× over {t.count}" for t in found]
        yield ["geometric mean", words, *("" for _ in _FRAMEWORKS), *cells]


def _best(mine: Sequence[Row], framework: str, what: str) -> str:
    times = [
        time.median
        for row in mine
        if row.measurement.contestant.replace(".", " ").split()[0] == framework
        and (time := row.train if what == "train" else row.forward) is not None
    ]
    return f"{1e3 * min(times):.3g}" if times else "–"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    page = _ROOT / "README.md"
    write_atomically(page, updated(page.read_text(encoding="utf-8")))
