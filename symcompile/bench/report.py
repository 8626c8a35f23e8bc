"""Reports: rich tables for a terminal, Markdown and JSON for files.

In: `Results`. Out: text. The one thing to know: a time is the median over turns with the least and
the greatest turn beside it; what was not measured says why below the table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from symcompile.bench.compare import Match, Row, matches, rows, totals
from symcompile.bench.machine import one_line
from symcompile.bench.records import Results
from symcompile.bench.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["json_text", "markdown", "tables"]

_COLUMNS = (
    "contestant",
    "forward, ms",
    "roofline",
    "forward + backward, ms",
    "roofline",
    "first result, s",
    "plan + emit + compile, s",
    "peak, MiB",
    "of in + out",
    "peak training, MiB",
)


def json_text(results: Results) -> str:
    """Everything that was measured, and what follows from it, with the machine."""
    data = results.to_dict()
    data["matches"] = [
        {
            "workload": m.workload,
            "what": m.what,
            "framework": m.framework,
            "ours": m.ours,
            "peer": m.peer,
            "theirs": m.theirs,
            "ratio": m.ratio.median,
            "low": m.ratio.low,
            "high": m.ratio.high,
            "paired": m.ratio.paired,
        }
        for m in matches(results)
    ]
    data["rooflines"] = [
        {
            "workload": row.workload.name,
            "contestant": row.measurement.contestant,
            "forward": row.share,
            "train": row.share_train,
            "bytes": row.floor.bytes,
            "flops": row.floor.flops,
        }
        for row in rows(results)
        if row.forward is not None
    ]
    return json.dumps(data, indent=1) + "\n"


def tables(results: Results, names: Sequence[str] | None = None) -> list[Table]:
    """One rich table for each workload (of those names), and one of ratios."""
    from rich.table import Table
    from rich.text import Text

    found = []
    for title, cells in _sections(results, names):
        header, *body = cells
        table = Table(title=title, title_justify="left", title_style="bold")
        for place, column in enumerate(header):
            table.add_column(Text(column), justify="right" if place else "left")
        for row in body:
            table.add_row(*(Text(cell) for cell in row))
        found.append(table)
    return found


def markdown(results: Results) -> str:
    """All of it as Markdown, with the machine and the command on top."""
    lines = ["# Benchmark results", ""]
    for session in results.sessions:
        used = [m for m in results.measurements if m.session == session.name]
        if not used:
            continue
        setting, rates = session.setting, session.rates
        lines += [
            f"Run of {session.name}: `{session.command}`",
            "",
            f"- Machine: {one_line(session.machine)}",
            f"- Device {setting.device}, {setting.dtype}, {setting.threads} threads for everyone; "
            f"{session.rounds} turns of {session.budget:g} s, interleaved",
            f"- Reached in this run: {rates.bandwidth / 1e9:.1f} GB/s copied, "
            f"{rates.flops / 1e9:.0f} Gflop/s multiplied"
            if rates
            else "- The machine's own rates could not be measured",
            "",
        ]
    lines += [
        "A time is the median over turns, with the least and the greatest in brackets. Roofline is "
        "the least time that bytes and operations allow over the time taken. Peak counts inputs, "
        "outputs and what lies between.",
        "",
    ]
    for title, (header, *body) in _sections(results, None):
        lines += [f"## {title}", "", _line(header), "|" + "---|" * len(header)]
        lines += [*(_line(row) for row in body), ""]
    missing = [m for m in results.measurements if m.status != "ok" or m.reason]
    if missing:
        lines += ["## Not measured", ""]
        lines += [
            f"- {m.workload['name']}, {m.contestant}: {m.status}: {_escaped(m.reason)}"
            for m in missing
        ]
        lines += [""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _sections(
    results: Results, names: Sequence[str] | None
) -> list[tuple[str, list[Sequence[str]]]]:
    """Titles and cells: the ratios first, then one table for each workload."""
    every = rows(results)
    wanted = [w for w in results.workloads() if names is None or w.name in names]
    found: list[tuple[str, list[Sequence[str]]]] = []
    against = matches(results)
    main = [w.name for w in wanted if not _only_grown(w.name)]
    if any(match.workload in main for match in against):
        found.append(("How many times longer the peers take", _ratios(against, main)))
        found.append(("Over all workloads", _totals(against, main)))
    for workload in wanted:
        mine = [row for row in every if row.workload.name == workload.name]
        timed = sorted(
            (row for row in mine if row.forward is not None), key=lambda row: _median(row.forward)
        )
        if timed:
            title = (
                f"{workload.name}: {workload.title}, batch {workload.batch}, "
                f"{workload.channels} channels"
            )
            found.append((title, [_COLUMNS, *map(_cells, timed)]))
    return found


def _only_grown(name: str) -> bool:
    """Whether a workload is there for its series alone."""
    from symcompile.bench.workloads import WORKLOADS

    return name not in WORKLOADS and name.startswith(("transformer-", "graph2-n", "graph3-n"))


def _ratios(found: Sequence[Match], names: Sequence[str]) -> list[Sequence[str]]:
    columns = list(dict.fromkeys((m.peer, m.framework) for m in found if m.workload in names))
    header = ["workload", "", *(f"{peer} / ours on {framework}" for peer, framework in columns)]
    body = []
    for name in names:
        for what in ("forward", "train", "first result"):
            cells = {
                (m.peer, m.framework): _times(m.ratio)
                for m in found
                if (m.workload, m.what) == (name, what)
            }
            if cells:
                body.append([name, what, *(cells.get(column, "–") for column in columns)])
    return [header, *body]


def _totals(found: Sequence[Match], names: Sequence[str]) -> list[Sequence[str]]:
    body = [
        [
            t.what,
            f"{t.peer} / ours on {t.framework}",
            f"{t.mean:.2f}×",
            f"{t.worst:.2f}× ({t.worst_workload})",
            str(t.count),
        ]
        for t in totals(found, names)
    ]
    return [["", "ratio", "geometric mean", "least", "workloads"], *body]


def _cells(row: Row) -> list[str]:
    made = row.measurement
    stages = [made.stages.get(name) for name in ("plan", "emit", "compile")]
    return [
        made.contestant,
        _milliseconds(row.forward),
        _percent(row.share),
        _milliseconds(row.train),
        _percent(row.share_train),
        "–" if made.first_result is None else f"{made.first_result:.2f}",
        " + ".join("–" if stage is None else f"{stage:.2f}" for stage in stages),
        "–" if row.peak is None else f"{row.peak / 2**20:.0f}",
        "–" if row.peak is None else f"{row.peak / row.needed:.2f}×",
        "–" if row.peak_train is None else f"{row.peak_train / 2**20:.0f}",
    ]


def _milliseconds(value: Summary | None) -> str:
    if value is None:
        return "–"
    low, middle, high = (f"{1e3 * v:.3g}" for v in (value.low, value.median, value.high))
    return f"{middle} [{low}, {high}]"


def _times(value: Summary) -> str:
    if value.low == value.high:
        return f"{value.median:.2f}×"
    unpaired = "" if value.paired else " (not interleaved)"
    return f"{value.median:.2f}× [{value.low:.2f}, {value.high:.2f}]{unpaired}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}%"


def _median(value: Summary | None) -> float:
    return float("inf") if value is None else value.median
