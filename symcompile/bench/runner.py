"""Running a benchmark: every workload, every contestant, in turns.

In: a `Run`. Out: records, appended to its file as each workload is done.

The one thing to know: contestants of a workload are built one after the other, each alone on the
machine; then they take turns, A B C A B C, while the others sleep; memory is measured last. What
was measured before is left alone; what a run that was broken off had not finished is begun anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import count
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

from symcompile.bench.contestants import Contestant
from symcompile.bench.machine import describe, free_on_gpu
from symcompile.bench.memory import available
from symcompile.bench.process import Child
from symcompile.bench.records import (
    Measurement,
    Results,
    Session,
    append,
    key_of,
    read_published,
    read_results,
)
from symcompile.bench.roofline import GAUGES, Rates
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import Workload
from symcompile.errors import OptionError

__all__ = ["Run", "pending", "ready", "run"]

_SPARE = 2 << 30
"""Bytes that a process may need besides data."""

_WHILE = 60.0
"""Seconds after which a machine may be another: less busy, or cooler."""


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
        limit: seconds that a contestant has to be built, compile and pass the check, all together,
            and then for every turn.
        command: that this run was asked for with.
        copied, side: bytes and rows that calibration uses.
    """

    entries: tuple[tuple[Workload, tuple[Contestant, ...]], ...]
    setting: Setting
    records: Path
    rounds: int = 5
    budget: float = 0.5
    most: int = 100
    limit: float = 60.0
    command: str = ""
    copied: int = 1 << 28
    side: int = 2048

    @property
    def steps(self) -> int:
        """Steps of progress that each contestant takes on each workload."""
        return self.rounds + 2


@dataclass
class _Seat:
    """A contestant at a workload: its process, what is known so far, and when its time is up."""

    child: Child
    so_far: Measurement
    end: float


def ready(run: Run) -> None:
    """Whether a run can be made and its results go where they are to go.

    Raises:
        OptionError: no framework sees the device, or the folder holds results of another setting or
            machine, which cannot be compared with those of this one.
    """
    if run.setting.device != "cpu":
        with Child({}, run.setting) as child:
            child.start(run.limit)
            if not child.ask({"do": "look"}, run.limit).get("sees_device"):
                raise OptionError(
                    f"--device {run.setting.device}: neither torch nor JAX sees such a device; "
                    "install one of them with CUDA on a machine that has it, or use --device cpu"
                )
    machine = describe()
    folder = run.records.parent
    earlier = read_results(run.records).sessions
    # A checkout has published results without the records that they were made of.
    for session in earlier or read_published(folder / "results.json").sessions:
        theirs, ours = (
            {**asdict(setting), **{name: known.get(name) for name in _MACHINE}}
            for setting, known in ((session.setting, session.machine), (run.setting, machine))
        )
        other = [name for name in ours if theirs[name] != ours[name]]
        if other:
            found = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in other)
            raise OptionError(
                f"{folder} holds results of another setting ({found}); give another --output"
            )


_MACHINE = ("processor", "cores", "gpus")
"""What makes another machine."""


def pending(run: Run) -> list[tuple[Workload, list[Contestant]]]:
    """What is not measured yet, or with fewer rounds; what failed, lacked a package or device, or
    was late for a lower limit, is tried again.
    """
    results = read_results(run.records)
    done = {
        m.key + m.contestant
        for m in results.measurements
        if (m.status in ("ok", "refused") and results.session(m).rounds >= run.rounds)
        or (m.status == "late" and results.session(m).limit >= run.limit)
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
        session, seen = _session(run), -inf
        for workload, contestants in left:
            # Again after a while: a machine that was busy at first is not that slow.
            if monotonic() - seen > _WHILE:
                told("measuring the machine", 0)
                session, seen = _gauged(run, session), monotonic()
                append(run.records, [session])
            for group in count():
                if not contestants:
                    break
                name = f"{session.name} {workload.name} {group}"
                contestants = _workload(run, session, name, workload, contestants, told)
    return read_results(run.records)


def _session(run: Run) -> Session:
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return Session(
        name, run.command, describe(), run.setting, None, run.rounds, run.budget, run.limit
    )


def _gauged(run: Run, session: Session) -> Session:
    """The session with the best rates seen so far, by whichever library.

    Each has a process that ends then: the libraries disturb each other, and on a GPU they hold
    memory as long as they live.
    """
    rates = session.rates
    for by in GAUGES:
        command = {"do": "calibrate", "by": by, "copied": run.copied, "side": run.side}
        with Child({}, run.setting) as gauge:
            gauge.start(run.limit)
            answer = gauge.ask(command, run.limit)
        if answer["status"] == "ok":
            seen = rates or Rates(0.0, 0.0)
            rates = Rates(
                max(seen.bandwidth, answer["bandwidth"]), max(seen.flops, answer["flops"])
            )
    return replace(session, rates=rates)


def _workload(
    run: Run,
    session: Session,
    group: str,
    workload: Workload,
    contestants: Sequence[Contestant],
    told: Callable[[str, int], None],
) -> list[Contestant]:
    """Measure as many contestants as fit in memory; those that are left."""
    seats: list[_Seat] = []
    over: list[Measurement] = []
    rest = list(contestants)
    with ExitStack() as stack:
        while rest and (not seats or _fits(workload, run.setting.device)):
            contestant = rest.pop(0)
            told(f"{workload.name}: {contestant.name}, building", 0)
            blank = Measurement(
                workload.to_dict(),
                contestant.name,
                contestant.is_ours,
                key_of(workload, contestant, run.setting),
                session.name,
                group,
                "failed",
            )
            seat = _built(run, stack, _job(workload, contestant), blank)
            if seat.so_far.status == "ok":
                seats.append(seat)
                told("", 1)
            else:
                seat.child.close()
                over.append(seat.so_far)
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
            trains = seat.so_far.train_status == "ok"
            answer = seat.child.ask({"do": "weigh", "trains": trains}, run.limit)
            seat.so_far = replace(
                seat.so_far, extra=answer.get("extra"), extra_train=answer.get("extra_train")
            )
            told("", 1)
    made_now = {m.contestant: m for m in (*over, *(seat.so_far for seat in seats))}
    append(run.records, [made_now[c.name] for c in contestants if c.name in made_now])
    return rest


def _job(workload: Workload, contestant: Contestant) -> dict[str, Any]:
    return {
        "workload": workload.to_dict(),
        "contestant": {"name": contestant.name, "file": contestant.file},
    }


def _fits(workload: Workload, device: str) -> bool:
    """Whether there is memory for one more process, sleeping or not."""
    free = [available(), None if device == "cpu" else free_on_gpu()]
    # Two inputs and cotangents, outputs and gradients of all that, and what stands in between.
    needed = _SPARE + 14 * 4 * workload.entries
    return all(known is None or known > needed for known in free)


def _built(run: Run, stack: ExitStack, job: Mapping[str, Any], blank: Measurement) -> _Seat:
    """Build, compile and check one contestant, within the limit."""
    seat = _first(run, stack, job, blank)
    if seat.so_far.status != "ok":
        return seat
    answer = seat.child.ask({"do": "first_train"}, seat.end - monotonic())
    if answer["status"] == "refused":
        made = replace(seat.so_far, status="refused", reason=f"backward: {answer['reason']}")
        return replace(seat, so_far=made)
    if answer["status"] == "ok":
        known = {"compile_train": answer["compile"]} if answer["trains"] else {}
        made = replace(
            seat.so_far,
            stages={**seat.so_far.stages, **known},
            train_status="ok" if answer["trains"] else "none",
        )
        return replace(seat, so_far=made)
    # It is timed forward only: by a new process where this one died, or where a device may answer
    # every call after an error with that error.
    if not seat.child.alive or run.setting.device != "cpu":
        seat.child.close()
        seat = _first(run, stack, job, blank)
    reason = _over_limit(run) if answer["status"] == "late" else answer["reason"]
    made = replace(seat.so_far, train_status=answer["status"], train_reason=reason)
    return replace(seat, so_far=made)


def _first(run: Run, stack: ExitStack, job: Mapping[str, Any], blank: Measurement) -> _Seat:
    """Build and check one contestant, up to its forward pass."""
    end = monotonic() + run.limit
    child = stack.enter_context(Child(job, run.setting))
    answer = child.start(run.limit)
    if answer["status"] == "ok":
        answer = child.ask({"do": "first"}, end - monotonic())
    if answer["status"] == "ok":
        told = {name: answer[name] for name in ("error", "tolerance", "stages", "versions")}
        return _Seat(child, replace(blank, status="ok", **told), end)
    reason = _over_limit(run) if answer["status"] == "late" else answer["reason"]
    return _Seat(child, replace(blank, status=answer["status"], reason=reason), end)


def _over_limit(run: Run) -> str:
    return f"not built, compiled and checked within {run.limit:.0f} s"


def _turn(run: Run, seat: _Seat) -> Measurement:
    """One turn: forward passes, then forward and backward."""
    made = seat.so_far
    for what in ("forward", "train"):
        if what == "train" and made.train_status != "ok":
            continue
        command = {"do": "round", "what": what, "budget": run.budget, "most": run.most}
        answer = seat.child.ask(command, run.limit)
        if answer["status"] != "ok":
            return replace(made, status=answer["status"], reason=f"{what}: {answer['reason']}")
        turns = (*made.times(what), tuple(answer["times"]))
        made = replace(made, forward=turns) if what == "forward" else replace(made, train=turns)
    return made
