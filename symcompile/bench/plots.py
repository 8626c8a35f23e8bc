"""Plots of results, as PNG and SVG.

In: `Results` and a folder. Out: the files written: ratios to the peers for each workload, where
contestants stand under the roofline, and growth with the number of tensors and with n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from symcompile.bench.compare import Row, fared, matches, rows
from symcompile.bench.records import Results
from symcompile.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "require"]

_FRAMEWORKS = {"torch": "tab:orange", "jax": "tab:blue"}
_WHAT = {"forward": "forward", "train": "forward + backward"}
_GROWTH = {
    "blocks": ("tensors", "transformer of 1, 2, 4, 8 blocks"),
    "n2": ("n", "graph of order 2"),
    "n3": ("n", "graph of order 3"),
}


def require() -> None:
    """Better before a run than after it.

    Raises:
        OptionError: Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise OptionError(
            "plots need Matplotlib; install it, or symcompile with its extra 'bench', or leave "
            "them out with --no-plots"
        )


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw whatever the results have data for.

    Raises:
        OptionError: Matplotlib is not installed.
    """
    require()
    from matplotlib.figure import Figure

    every = rows(results)
    written: list[Path] = []
    makers: list[tuple[str, Callable[[Figure], bool]]] = [
        ("ratios", partial(_ratios, results=results)),
        ("roofline", partial(_roofline, results=results, every=every)),
        *(
            (f"growth-{kind}", partial(_growth, kind=kind, results=results, every=every))
            for kind in _GROWTH
        ),
    ]
    for name, make in makers:
        figure = Figure(figsize=(10, 5), layout="constrained")
        if make(figure):
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in ("png", "svg"):
                path = folder / f"{name}.{suffix}"
                # Without dates, the same results give the same file.
                undated = {"Date": None} if suffix == "svg" else None
                figure.savefig(path, dpi=130, metadata=undated)
                written.append(path)
    return written


def _ratios(figure: Figure, results: Results) -> bool:
    """One panel for each peer and kind of call: bars for each workload."""
    main = [w.name for w in results.workloads() if not w.only_grown]
    found = [m for m in matches(results) if m.what in _WHAT and m.workload in main]
    peers = list(dict.fromkeys(m.peer for m in found))
    if not peers:
        return False
    panels = figure.subplots(len(peers), len(_WHAT), squeeze=False, sharex="row")
    for line, peer in zip(panels, peers, strict=True):
        for axes, (what, words) in zip(line, _WHAT.items(), strict=True):
            shown = [m for m in found if (m.peer, m.what) == (peer, what)]
            met = {m.workload for m in shown}
            fates = {name: fared(results, name, peer, what) for name in main}
            lost = {name: word for name, word in fates.items() if word not in (None, "ok")}
            names = [name for name in main if name in met or name in lost]
            for offset, (framework, colour) in enumerate(_FRAMEWORKS.items()):
                mine = [m for m in shown if m.framework == framework]
                places = [names.index(m.workload) + 0.4 * offset - 0.2 for m in mine]
                middles = [m.ratio.median for m in mine]
                spread = [
                    [m.ratio.median - m.ratio.low for m in mine],
                    [m.ratio.high - m.ratio.median for m in mine],
                ]
                axes.barh(places, middles, 0.38, color=colour, label=f"ours on {framework}")
                axes.errorbar(middles, places, xerr=spread, fmt="none", ecolor="black", lw=0.8)
            axes.axvline(1, color="black", lw=0.8)
            for name in names:
                if name not in met:
                    axes.text(1.0, names.index(name), f" {lost[name]}", va="center", fontsize=8)
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.set_title(f"{peer}: time over ours, {words}", fontsize=10)
    panels[0][0].legend(fontsize=8)
    return True


def _roofline(figure: Figure, results: Results, every: Sequence[Row]) -> bool:
    """Rate of necessary operations over necessary operations per byte."""
    import numpy as np

    shown = [
        row
        for row in every
        if row.forward is not None and row.floor.flops and not row.workload.only_grown
    ]
    rates = next((s.rates for s in reversed(results.sessions) if s.rates is not None), None)
    if not shown or rates is None:
        return False
    axes = figure.subplots()
    intensities = [row.floor.flops / row.floor.bytes for row in shown]
    ridge = rates.flops / rates.bandwidth
    line = np.geomspace(min(*intensities, ridge) / 4, max(*intensities, ridge) * 4, 200)
    axes.plot(line, np.minimum(line * rates.bandwidth, rates.flops) / 1e9, color="black", lw=1)
    names = list(dict.fromkeys(row.measurement.contestant for row in shown))
    for number, name in enumerate(names):
        mine = [row for row in shown if row.measurement.contestant == name]
        axes.plot(
            [row.floor.flops / row.floor.bytes for row in mine],
            [row.floor.flops / 1e9 / row.forward.median for row in mine if row.forward],
            "o" if mine[0].measurement.ours else "x",
            color=_colour(number),
            label=name,
        )
    for row in {row.workload.name: row for row in shown}.values():
        axes.text(
            row.floor.flops / row.floor.bytes,
            0.02,
            row.workload.name,
            rotation=90,
            fontsize=7,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="necessary operations per byte",
        ylabel="Gflop/s of necessary operations, forward",
        title="Under the roofline",
    )
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def _colour(number: int) -> str:
    return f"C{number}" if number < 10 else "black"


def _growth(figure: Figure, kind: str, results: Results, every: Sequence[Row]) -> bool:
    """Compile time and run time over size."""
    shown = [row for row in every if row.workload.series and row.workload.series[0] == kind]
    grown = {row.measurement.contestant for row in shown if row.workload.only_grown}
    # Who took part at one size only, or does not apply, has no line.
    shown = [
        row
        for row in shown
        if row.measurement.contestant in grown and row.measurement.status != "skipped"
    ]
    if len({row.workload.name for row in shown}) < 2:
        return False
    label, title = _GROWTH[kind]
    left, middle, right = figure.subplots(1, 3)
    for axes, words, value in (
        (left, "spec to first result, s", lambda row: row.measurement.first_result),
        (middle, "forward, s", lambda row: row.forward and row.forward.median),
        (right, "forward + backward, s", lambda row: row.train and row.train.median),
    ):
        for number, name in enumerate(dict.fromkeys(row.measurement.contestant for row in shown)):
            mine = [row for row in shown if row.measurement.contestant == name and row.forward]
            points = sorted(_points(kind, mine, value))
            if points:
                style = "o-" if mine[0].measurement.ours else "x--"
                axes.plot(*zip(*points, strict=True), style, color=_colour(number), label=name)
        axes.set(xscale="log", yscale="log", xlabel=label, title=words)
        sizes = sorted({x for x, _ in _points(kind, shown, lambda row: 1.0)})
        if axes is left:
            _mark_late(axes, kind, shown, results)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    handles, words = left.get_legend_handles_labels()
    figure.legend(handles, words, fontsize=8, loc="outside lower center", ncols=6)
    figure.suptitle(f"Growth: {title}")
    return True


def _mark_late(axes: Axes, kind: str, shown: Sequence[Row], results: Results) -> None:
    """Whoever was given up on took longer than its limit."""
    names = list(dict.fromkeys(row.measurement.contestant for row in shown))
    for row in shown:
        if row.measurement.status == "late":
            limit = results.session(row.measurement).limit
            ((x, y),) = _points(kind, [row], lambda _, limit=limit: limit)
            number = names.index(row.measurement.contestant)
            axes.plot(x, y, "^", color=_colour(number))
            axes.annotate("late", (x, y), fontsize=7, ha="right", va="bottom")


def _points(kind: str, shown: Iterable[Row], value: Any) -> Iterable[tuple[int, float]]:
    for row in shown:
        y = value(row)
        if y and row.workload.series:
            yield (len(row.workload.spec.leaves) if kind == "blocks" else row.workload.series[1]), y
