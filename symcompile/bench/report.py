"""Reports: rich tables for a terminal, Markdown and JSON for files.

In: `Results`. Out: text. The one thing to know: a time is the median over turns with the least and
the greatest turn beside it; where there is none, the table says "late", "failed" or "refused", and
a list below it why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from symcompile.bench.compare import Match, Row, fared, matches, rows, totals
from symcompile.bench.machine import one_line
from symcompile.bench.records import STAGES, Results
from symcompile.bench.statistics import Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["json_text", "markdown", "ratio_text", "tables", "unmeasured"]

_FRESH = ", large results in memory fresh from the system"
_COLUMNS = (
    "contestant",
    "forward, ms",
    "roofline",
    "forward + backward, ms",
    "roofline",
    "first result, s",
    "plan + emit + init + compile, s",
    "import, s",
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


def unmeasured(results: Results, names: Sequence[str] | None = None) -> list[str]:
    """One line for each contestant on each workload (of those names) that has no time, or no time
    of forward + backward, with the reason.
    """
    found = []
    for made in results.measurements:
        where = f"{made.workload['name']}, {made.contestant}"
        if names is not None and made.workload["name"] not in names:
            continue
        if made.status != "ok":
            found.append(f"{where}: {made.status}: {made.reason}")
        elif made.train_status not in ("ok", "none"):
            found.append(f"{where}, forward + backward: {made.train_status}: {made.train_reason}")
    return found


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """All of it as Markdown, with the machine and the command on top.

    Args:
        plots: image files to show, beside the page.
    """
    lines = ["# Benchmark results", ""]
    for session in results.sessions:
        used = [m for m in results.measurements if m.session == session.name]
        if not used:
            continue
        setting, rates = session.setting, session.rates
        lines += [
            f"Run of {session.name}: `{session.command}`",
            "",
            f"- Machine: {one_line(session.machine)}; load when the run began "
            f"{(session.machine.get('load') or [0.0])[0]:.1f}",
            f"- Device {setting.device}, {setting.dtype}, {_threads(setting.threads)} for "
            f"everyone{_FRESH * setting.fresh}; {session.rounds} turns of {session.budget:g} s, "
            f"interleaved; limit for building and compiling {session.limit:g} s",
            f"- Reached in this run: {rates.bandwidth / 1e9:.1f} GB/s copied, "
            f"{rates.flops / 1e9:.0f} Gflop/s multiplied"
            if rates
            else "- The machine's own rates could not be measured",
            "",
        ]
    lines += [
        "A time is the median over turns, with the least and the greatest in brackets. Roofline is "
        "the least time that bytes and operations allow over the time taken. Peak counts inputs, "
        "outputs and what lies between, not weights.",
        "",
    ]
    lines += [line for plot in plots for line in (f"![{Path(plot).stem}]({plot})", "")]
    for title, (header, *body) in _sections(results, None):
        lines += [f"## {title}", "", _line(header), "|" + "---|" * len(header)]
        lines += [*(_line(row) for row in body), ""]
    missing = unmeasured(results)
    if missing:
        lines += ["## Not measured", "", *(f"- {_escaped(line)}" for line in missing), ""]
    return "\n".join(lines)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


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
    main = [w.name for w in wanted if not w.only_grown]
    if any(match.workload in main for match in against):
        found.append(("How many times longer the peers take", _ratios(results, against, main)))
        found.append(("Over all workloads", _totals(against, main)))
    for workload in wanted:
        mine = [row for row in every if row.workload.name == workload.name]
        # Who does not apply here is left to the list of what was not measured.
        shown = [row for row in mine if row.measurement.status != "skipped"]
        if shown:
            title = (
                f"{workload.name}: {workload.title}, batch {workload.batch}, "
                f"{workload.channels} channels"
            )
            ordered = sorted(shown, key=lambda row: _median(row.forward))
            found.append((title, [_COLUMNS, *map(_cells, ordered)]))
    return found


def _ratios(results: Results, found: Sequence[Match], names: Sequence[str]) -> list[Sequence[str]]:
    columns = list(dict.fromkeys((m.peer, m.framework) for m in found if m.workload in names))
    header = ["workload", "", *(f"{peer} / ours on {framework}" for peer, framework in columns)]
    body = []
    for name in names:
        for what in ("forward", "train", "first result"):
            cells = [ratio_text(results, found, name, what, *column) for column in columns]
            if any(cell != "–" for cell in cells):
                body.append([name, what, *cells])
    return [header, *body]


def ratio_text(
    results: Results, found: Sequence[Match], workload: str, what: str, peer: str, framework: str
) -> str:
    """A ratio, or why there is none: how the peer or ours fared, or a dash if it does not apply."""
    for m in found:
        if (m.workload, m.what, m.peer, m.framework) == (workload, what, peer, framework):
            return _times(m.ratio)
    theirs, ours = (fared(results, workload, family, what) for family in (peer, framework))
    if "ok" in (theirs, ours) and ours not in (None, "ok"):
        return f"ours {ours}"
    return "–" if theirs in (None, "ok") else theirs


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
    stages = [made.stages.get(name) for name in STAGES]
    loading = made.stages.get("import")
    return [
        made.contestant,
        _milliseconds(row.forward) if made.status == "ok" else made.status,
        _percent(row.share),
        _milliseconds(row.train) if made.train_status in ("ok", "none") else made.train_status,
        _percent(row.share_train),
        "–" if made.first_result is None else f"{made.first_result:.2f}",
        " + ".join("–" if stage is None else f"{stage:.2f}" for stage in stages),
        "–" if loading is None else f"{loading:.2f}",
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
