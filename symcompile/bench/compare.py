"""What the measurements say: each contestant on each workload, and ours against the peers.

In: `Results`. Out: `Row`s and `Match`es, which every report prints and every plot draws.

The one thing to know: against peers, ours is the best on each framework, and a peer that can be run
eagerly and compiled is the better of the two. Best means the least median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from symcompile.bench.records import Measurement, Results
from symcompile.bench.roofline import Floor, floor_of
from symcompile.bench.statistics import Summary, geometric_mean, ratio, summary
from symcompile.bench.workloads import Workload
from symcompile.check.draw import dtype_of

__all__ = ["Match", "Row", "Total", "fared", "matches", "rows", "totals"]


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant on one workload.

    Attributes:
        workload, measurement: what was measured.
        forward, train: seconds of a call; None if not timed.
        share, share_train: floor time over the median: 1 is the roofline.
        floor, floor_train: what the layer cannot do without.
        peak, peak_train: bytes at the peak of a call, its inputs (and cotangents) included, weights
            not.
        needed: bytes of inputs and outputs.
    """

    workload: Workload
    measurement: Measurement
    forward: Summary | None
    train: Summary | None
    share: float | None
    share_train: float | None
    floor: Floor
    floor_train: Floor
    peak: int | None
    peak_train: int | None
    needed: int


@dataclass(frozen=True, slots=True)
class Match:
    """Ours on one framework against one peer, on one workload.

    Attributes:
        workload, what: the workload's name; "forward", "train" or "first result".
        framework, ours: "torch" or "jax", and the contestant that was best there.
        peer, theirs: the peer's family, and its contestant that was best.
        ratio: how many times longer the peer takes.
    """

    workload: str
    what: str
    framework: str
    ours: str
    peer: str
    theirs: str
    ratio: Summary


@dataclass(frozen=True, slots=True)
class Total:
    """All matches of one framework against one peer.

    Attributes:
        mean: geometric mean of the ratios.
        worst, worst_workload: the least of them, and where.
        count: workloads.
    """

    what: str
    framework: str
    peer: str
    mean: float
    worst: float
    worst_workload: str
    count: int


def rows(results: Results) -> list[Row]:
    """Every measurement, with what follows from it."""
    found = []
    for workload in results.workloads():
        for made in results.of(workload.name).values():
            session = results.session(made)
            size = dtype_of(session.setting.dtype).itemsize
            floors = {what: floor_of(workload, size, train=what == "train") for what in _CALLS}
            times = {what: _summary(made, what) for what in _CALLS}
            data = workload.entries * size
            shares = {
                what: None
                if (time := times[what]) is None or session.rates is None
                else session.rates.seconds(floors[what]) / time.median
                for what in _CALLS
            }
            found.append(
                Row(
                    workload,
                    made,
                    times["forward"],
                    times["train"],
                    shares["forward"],
                    shares["train"],
                    floors["forward"],
                    floors["train"],
                    None if made.extra is None else made.extra + data,
                    None if made.extra_train is None else made.extra_train + 2 * data,
                    2 * data,
                )
            )
    return found


_CALLS = ("forward", "train")


def _summary(made: Measurement, what: str) -> Summary | None:
    turns = made.times(what)
    return summary(turns) if made.status == "ok" and turns else None


def matches(results: Results) -> list[Match]:
    """Best of ours on each framework against the best of each peer."""
    found = []
    for workload in results.workloads():
        made = [m for m in results.of(workload.name).values() if m.status == "ok"]
        peers = _grouped([m for m in made if not m.ours])
        ours = _grouped([m for m in made if m.ours])
        for what in (*_CALLS, "first result"):
            for framework in ("torch", "jax"):
                best = _best(ours.get(framework, ()), what)
                for peer, group in peers.items():
                    rival = _best(group, what)
                    if best is not None and rival is not None:
                        found.append(
                            Match(
                                workload.name,
                                what,
                                framework,
                                best.contestant,
                                peer,
                                rival.contestant,
                                _ratio(rival, best, what),
                            )
                        )
    return found


def fared(results: Results, workload: str, family: str, what: str) -> str | None:
    """How ours on a framework, or a peer's contestants, fared: "ok" if one has a time, else "late",
    "failed" or "refused"; None if they do not apply.
    """
    statuses = [
        made.train_status if what == "train" and made.status == "ok" else made.status
        for made in results.of(workload).values()
        if _family(made) == family
    ]
    return next((word for word in ("ok", "late", "failed", "refused") if word in statuses), None)


def totals(found: Sequence[Match], names: Sequence[str]) -> list[Total]:
    """Geometric mean and worst case over the workloads of those names."""
    groups: dict[tuple[str, str, str], list[Match]] = {}
    for match in found:
        if match.workload in names:
            groups.setdefault((match.what, match.peer, match.framework), []).append(match)
    made = []
    for (what, peer, framework), group in groups.items():
        worst = min(group, key=lambda match: match.ratio.median)
        made.append(
            Total(
                what,
                framework,
                peer,
                geometric_mean([match.ratio.median for match in group]),
                worst.ratio.median,
                worst.workload,
                len(group),
            )
        )
    return made


def _grouped(made: Sequence[Measurement]) -> Mapping[str, list[Measurement]]:
    """By framework, or by peer: "torch.compile auto" is torch, "nfn compiled" is nfn."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in made:
        groups.setdefault(_family(measurement), []).append(measurement)
    return groups


def _family(made: Measurement) -> str:
    name = made.contestant
    return name.split()[0].split(".")[0] if made.ours else name.removesuffix(" compiled")


def _best(group: Sequence[Measurement], what: str) -> Measurement | None:
    timed = [(time, m) for m in group if (time := _time(m, what)) is not None]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


def _time(made: Measurement, what: str) -> float | None:
    if what == "first result":
        return made.first_result
    found = _summary(made, what)
    return None if found is None else found.median


def _ratio(slow: Measurement, fast: Measurement, what: str) -> Summary:
    if what == "first result":
        return ratio([[slow.first_result or 0.0]], [[fast.first_result or 1.0]])
    return ratio(slow.times(what), fast.times(what), paired=slow.group == fast.group)
