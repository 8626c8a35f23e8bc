"""What a run leaves behind: records, one JSON line each, that a later run picks up.

In: measurements as they come. Out: a `records.jsonl` file, and what is in it.

The one thing to know: a measurement is found again by the digests of its workload, its contestant's
code and the setting; whatever changed is measured anew, and the newest line counts. Where a
workload itself changed, all that was measured on the old one is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from symcompile.bench.contestants import Contestant
from symcompile.bench.roofline import Rates
from symcompile.bench.subject import Setting
from symcompile.bench.workloads import Workload
from symcompile.errors import ExportError, OptionError

__all__ = [
    "STAGES",
    "Measurement",
    "Results",
    "Session",
    "append",
    "key_of",
    "read_published",
    "read_results",
]

STAGES = ("plan", "emit", "init", "compile")
"""What comes before the first result."""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command.

    Attributes:
        name: a key in results.
        command: that made it.
        machine: what it ran on, see `machine.describe`.
        setting: of all its contestants.
        rates: what the machine reached in this run; None if that could not be measured.
        rounds, budget: turns of every contestant, seconds of each.
        limit: seconds that a contestant had to be built and to compile.
    """

    name: str
    command: str
    machine: Mapping[str, Any]
    setting: Setting
    rates: Rates | None
    rounds: int
    budget: float
    limit: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contestant on one workload.

    Attributes:
        workload: as `Workload.to_dict` writes it.
        contestant, ours: its name, and whether it is this compiler's.
        key: digests of workload, code and setting.
        session: the run it is from.
        group: equal for those whose turns were interleaved.
        status: "ok"; "skipped": does not apply; "refused": not equivariant; "late": no
            answer within the limit; "failed".
        reason: for a status that is not "ok".
        train_status: likewise of forward + backward; "none": has no gradients.
        train_reason: for a `train_status` of "late" or "failed".
        error, tolerance: largest relative error of equivariance, and what was allowed.
        stages: seconds to the first result, see `Stopwatch`, then compile and run; before that
            import, and after it compile_train.
        forward, train: seconds of every call, a list for each turn; empty if not timed.
        extra, extra_train: bytes a call takes on top of inputs and weights, outputs included;
            None if that could not be measured.
        versions: of the frameworks it is built on.
    """

    workload: Mapping[str, Any]
    contestant: str
    ours: bool
    key: str
    session: str
    group: str
    status: str
    reason: str = ""
    train_status: str = "ok"
    train_reason: str = ""
    error: float | None = None
    tolerance: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    forward: tuple[tuple[float, ...], ...] = ()
    train: tuple[tuple[float, ...], ...] = ()
    extra: int | None = None
    extra_train: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def times(self, what: str) -> tuple[tuple[float, ...], ...]:
        """Of "forward" or "train"."""
        return self.train if what == "train" else self.forward

    @property
    def first_result(self) -> float | None:
        """Seconds from the spec to the first output, importing the framework apart."""
        if "run" not in self.stages:
            return None
        return sum(self.stages.get(name, 0.0) for name in (*STAGES, "run"))


@dataclass(frozen=True, slots=True)
class Results:
    """All that a folder of results holds.

    Attributes:
        sessions: in order.
        measurements: the newest for each workload and contestant, in the order they were first
            made.
    """

    sessions: tuple[Session, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    def session(self, measurement: Measurement) -> Session:
        """The run a measurement is from."""
        return next(each for each in self.sessions if each.name == measurement.session)

    def workloads(self) -> list[Workload]:
        """Every workload, in the order they were first measured."""
        found = {m.workload["name"]: m.workload for m in self.measurements}
        return [Workload.from_dict(data) for data in found.values()]

    def of(self, workload: str) -> dict[str, Measurement]:
        """The measurements on one workload, by contestant."""
        return {m.contestant: m for m in self.measurements if m.workload["name"] == workload}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "sessions": [asdict(session) for session in self.sessions],
            "measurements": [asdict(measurement) for measurement in self.measurements],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Results:
        """The results that `to_dict` wrote."""
        return Results(
            tuple(map(_session, data["sessions"])), tuple(map(_measurement, data["measurements"]))
        )


def key_of(workload: Workload, contestant: Contestant, setting: Setting) -> str:
    """Equal exactly when measuring again would measure the same thing."""
    of_setting = f"{setting.device}-{setting.dtype}-{setting.threads}" + "-fresh" * setting.fresh
    return f"{workload.digest}-{contestant.digest}-{of_setting}"


def append(path: Path, records: Iterable[Session | Measurement]) -> None:
    """Add lines to a file of records.

    Raises:
        ExportError: it cannot be written.
    """
    text = "".join(
        json.dumps({"kind": type(record).__name__.lower(), **asdict(record)}) + "\n"
        for record in records
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a run was ended while it wrote
                    text = "\n" + text
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise ExportError(
            f"cannot write {str(path)!r}: {error.strerror}; give a folder that is writable"
        ) from error


def read_results(path: Path) -> Results:
    """What a file of records holds; nothing if there is no such file.

    A line that was cut off, by a run that was ended, is left out.

    Raises:
        OptionError: the file holds something else.
    """
    if not os.path.exists(path):
        return Results()
    sessions: dict[str, Session] = {}
    measurements: dict[tuple[str, str], Measurement] = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            data = json.loads(line)
            kind = data.pop("kind")
            if kind == "session":
                session = _session(data)
                sessions[session.name] = session
            else:
                made = _measurement(data)
                name = made.workload["name"]
                stale = [
                    key
                    for key, old in measurements.items()
                    if key[0] == name and old.workload != made.workload
                ]
                for key in stale:
                    del measurements[key]
                measurements[name, made.contestant] = made
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number > 1 and not line.endswith("}"):
                continue
            raise OptionError(
                f"{path}, line {number}: no record of a benchmark ({type(error).__name__}); "
                "give another output folder"
            ) from error
    return Results(tuple(sessions.values()), tuple(measurements.values()))


def read_published(path: Path) -> Results:
    """What a `results.json` holds; nothing if there is no such file.

    Raises:
        OptionError: the file holds something else.
    """
    if not path.exists():
        return Results()
    try:
        return Results.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{path}: no results of a benchmark ({type(error).__name__}); give another folder"
        ) from error


def _session(data: Mapping[str, Any]) -> Session:
    rates = data["rates"] and Rates(**data["rates"])
    return Session(**{**data, "setting": Setting(**data["setting"]), "rates": rates})


def _measurement(data: Mapping[str, Any]) -> Measurement:
    turns = {what: tuple(map(tuple, data[what])) for what in ("forward", "train")}
    return Measurement(**{**data, **turns})
