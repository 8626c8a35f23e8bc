"""Running a benchmark: every workload, every contestant, in turns.

In: a `Run`. Out: records, appended to its file as each workload is done.

The one thing to know: contestants of a workload are built one after the other, each alone on the
machine; then they take turns, A B C A B C, while the others sleep; memory is measured last. What
was measured before is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from symcompile.bench.contestants import Contestant
from symcompile.bench.machine import describe
from symcompile.bench.memory import available
from symcompile.bench.process import Child
from symcompile.bench.records import Measurement, Results, Session, append, key_of, read_results
from symcompile.bench.roofline import Rates
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import Workload

__all__ = ["Run", "pending", "run"]

_SPARE = 2 << 30
"""Bytes that a process may need besides data."""


@dataclass(frozen=True, slots=True)
class Run:
    """What to measure.

    Attributes:
        entries: workloads, each with who takes part.
        setting: of all of them.
        records: the file that results are added to.
        rounds: turns of every contestant.
        budget: seconds of a turn.
        most: calls of a turn.
        limit: seconds that a contestant may take to answer, compiling included.
        command: that this run was asked for with.
        copied, side: bytes and rows that calibration uses.
    """

    entries: tuple[tuple[Workload, tuple[Contestant, ...]], ...]
    setting: Setting
    records: Path
    rounds: int = 5
    budget: float = 0.5
    most: int = 100
    limit: float = 600.0
    command: str = ""
    copied: int = 1 << 28
    side: int = 2048

    @property
    def steps(self) -> int:
        """Steps of progress that each contestant takes on each workload."""
        return self.rounds + 2


@dataclass
class _Seat:
    """A contestant at a workload: its process and what is known so far."""

    child: Child
    so_far: Measurement


def pending(run: Run) -> list[tuple[Workload, list[Contestant]]]:
    """What is not measured yet; what failed, or lacked a package or device, is tried again."""
    done = {
        m.key + m.contestant
        for m in read_results(run.records).measurements
        if m.status in ("ok", "refused", "late")
    }
    found = []
    for workload, contestants in run.entries:
        left = [
            contestant
            for contestant in contestants
            if key_of(workload, contestant, run.setting) + contestant.name not in done
        ]
        if left:
            found.append((workload, left))
    return found


def run(run: Run, told: Callable[[str, int], None] = lambda text, steps: None) -> Results:
    """Measure what is left to measure.

    Args:
        told: called with what comes next and the number of steps just done; a contestant takes
            `run.steps` steps: to build it, its turns, and to weigh it.

    Returns:
        all that the file of records holds then.

    Raises:
        ExportError: the file cannot be written.
        OptionError: it holds something else.
    """
    left = pending(run)
    if left:
        session = _session(run)
        with Child({}, run.setting) as gauge:
            gauge.start(run.limit)
            for workload, contestants in left:
                # Before every workload: a machine that was busy at first is not that slow.
                told("measuring the machine", 0)
                session = _gauged(run, session, gauge)
                append(run.records, [session])
                while contestants:
                    contestants = _workload(run, session, workload, contestants, told)
    return read_results(run.records)


def _session(run: Run) -> Session:
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return Session(name, run.command, describe(), run.setting, None, run.rounds, run.budget)


def _gauged(run: Run, session: Session, gauge: Child) -> Session:
    """The session with the best rates seen so far."""
    command = {"do": "calibrate", "copied": run.copied, "side": run.side}
    answer = gauge.ask(command, run.limit)
    if answer["status"] != "ok":
        return session
    seen = session.rates or Rates(0.0, 0.0)
    best = Rates(max(seen.bandwidth, answer["bandwidth"]), max(seen.flops, answer["flops"]))
    return replace(session, rates=best)


def _workload(
    run: Run,
    session: Session,
    workload: Workload,
    contestants: Sequence[Contestant],
    told: Callable[[str, int], None],
) -> list[Contestant]:
    """Measure as many contestants as fit in memory; those that are left."""
    seats: list[_Seat] = []
    over: list[Measurement] = []
    rest = list(contestants)
    with ExitStack() as stack:
        while rest and (not seats or _fits(workload)):
            contestant = rest.pop(0)
            told(f"{workload.name}: {contestant.name}, building", 0)
            blank = Measurement(
                workload.to_dict(),
                contestant.name,
                contestant.is_ours,
                key_of(workload, contestant, run.setting),
                session.name,
                "failed",
            )
            child = stack.enter_context(Child(_job(workload, contestant), run.setting))
            made = _built(child, blank, run.limit)
            if made.status == "ok":
                seats.append(_Seat(child, made))
                told("", 1)
            else:
                child.close()
                over.append(made)
                told("", run.steps)
        for turn in range(run.rounds):
            for seat in list(seats):
                told(f"{workload.name}: turn {turn + 1}, {seat.so_far.contestant}", 0)
                seat.so_far = _turn(run, seat)
                told("", 1)
                if seat.so_far.status != "ok":
                    seat.child.close()
                    seats.remove(seat)
                    over.append(seat.so_far)
                    told("", run.rounds - turn)
        for seat in seats:
            told(f"{workload.name}: weighing {seat.so_far.contestant}", 0)
            answer = seat.child.ask({"do": "weigh"}, run.limit)
            if answer["status"] == "ok":
                weights = {name: answer[name] for name in ("extra", "extra_train")}
                seat.so_far = replace(seat.so_far, **weights)
            else:
                seat.so_far = replace(seat.so_far, reason=f"not weighed: {answer['reason']}")
            told("", 1)
    made_now = {m.contestant: m for m in (*over, *(seat.so_far for seat in seats))}
    append(run.records, [made_now[c.name] for c in contestants if c.name in made_now])
    return rest


def _job(workload: Workload, contestant: Contestant) -> dict[str, Any]:
    return {
        "workload": workload.to_dict(),
        "contestant": {"name": contestant.name, "file": contestant.file},
    }


def _fits(workload: Workload) -> bool:
    """Whether there is memory for one more process, sleeping or not."""
    free = available()
    # Two inputs, outputs and gradients of all that, and what stands in between.
    return free is None or free > _SPARE + 12 * 4 * workload.entries


def _built(child: Child, blank: Measurement, limit: float) -> Measurement:
    """Build, check, compile and weigh one contestant."""
    answer = child.start(limit)
    if answer["status"] == "ok":
        answer = child.ask({"do": "first"}, limit)
    if answer["status"] != "ok":
        return replace(blank, status=answer["status"], reason=answer["reason"])
    made = replace(
        blank,
        status="ok",
        error=answer["error"],
        tolerance=answer["tolerance"],
        stages=answer["stages"],
        versions=answer["versions"],
    )
    answer = child.ask({"do": "first_train"}, limit)
    if answer["status"] != "ok":
        return replace(made, status=answer["status"], reason=f"backward: {answer['reason']}")
    if not answer["trains"]:
        return made
    return replace(made, stages={**made.stages, "compile_train": answer["compile"]})


def _turn(run: Run, seat: _Seat) -> Measurement:
    """One turn: forward passes, then forward and backward."""
    made = seat.so_far
    for what in ("forward", "train"):
        if what == "train" and "compile_train" not in made.stages:
            continue
        command = {"do": "round", "what": what, "budget": run.budget, "most": run.most}
        answer = seat.child.ask(command, run.limit)
        if answer["status"] != "ok":
            return replace(made, status="failed", reason=f"{what}: {answer['reason']}")
        turns = (*made.times(what), tuple(answer["times"]))
        made = replace(made, forward=turns) if what == "forward" else replace(made, train=turns)
    return made
