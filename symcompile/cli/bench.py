"""`symcompile bench`: workloads and contestants by name, tables on stdout, files in a folder.

In: the words after options. Out: what `bench.report` and `bench.plots` make of the records.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from symcompile.cli.show import console, say
from symcompile.errors import OptionError

if TYPE_CHECKING:
    from symcompile.bench.contestants import Contestant
    from symcompile.bench.runner import Run
    from symcompile.bench.workloads import Workload

__all__ = ["HELP", "bench"]

HELP = """\
Time layers: ours on every backend, against each other, against peers and against the physical
limit. Every contestant runs in a process of its own, is held to equivariance before it is timed,
and takes turns with the others.

\b
  symcompile bench --quick
  symcompile bench mlp rnn --contestant 'torch auto' --contestant 'jax auto'
  symcompile bench --spec spec.yaml --size 0=64 --size 1=32 --batch 8 --channels 16
  symcompile bench --device cuda --dtype bfloat16 --batch 64 -o results/cuda

Workloads: mlp, deep, graph2, graph3, rnn, transformer, cnn; with --growth also transformers and
graphs of other sizes. A run that was broken off goes on where it stopped when the same command is
given again: at the first workload that it had not finished. What was measured by other code is
measured anew.
"""


@dataclass(frozen=True, slots=True)
class _Pace:
    """How long things are looked at."""

    rounds: int
    budget: float
    most: int
    limit: float
    copied: int
    side: int


_FULL = _Pace(5, 0.25, 100, 60.0, 1 << 28, 2048)
_QUICK = _Pace(3, 0.1, 20, 60.0, 1 << 26, 1024)

_BUSY = 1.0
"""Load average above which times are not to be trusted."""

_QUICK_BATCH = 4
_QUICK_WORKLOADS = ("graph2", "cnn")
# Inductor compiles for longer than all of these are built and timed.
_QUICK_CONTESTANTS = (
    "torch auto",
    "torch.triton auto",
    "jax auto",
    "numpy auto",
    "nfn",
    "one term at a time",
)


def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help="Default: all.")
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A spec of your own: a further workload.")
    ] = None,
    shapes: Annotated[Path | None, typer.Option(metavar="FILE", help="Shapes for --spec.")] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=N", help="Size of one label of --spec; many times."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Batch of all workloads; default their own.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Channels of all; default their own.")
    ] = None,
    contestant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one; many times. --list shows them."),
    ] = None,
    peers: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="Python files with contestants, or a folder; they are run. Default: the peers of "
            "the checkout that symcompile is installed from.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where to run.")] = "cpu",
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Of data and weights.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="For every contestant; default all cores.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Turns of each; default 5, quick 3.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="For building, compiling and checking one contestant; then it is late, and left "
            "out. Default 60.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two workloads of batch 4, few turns, no torch.compile.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Also how time grows with tensors and with n.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Leave the C library's allocator as it is: it maps large blocks anew. Else it is "
            "told to use memory again.",
        ),
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results go.")
    ] = Path("bench-results"),
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw PNG and SVG.")] = True,
    list_: Annotated[
        bool, typer.Option("--list", help="Name workloads and contestants, and stop.")
    ] = False,
) -> None:
    """See `HELP`."""
    from symcompile.bench.contestants import find_contestants, peers_beside
    from symcompile.bench.workloads import WORKLOADS

    known = find_contestants(peers if peers is not None else peers_beside(), device)
    if list_:
        console().print("workloads: " + ", ".join(WORKLOADS))
        console().print("contestants: " + ", ".join(each.name for each in known))
        return
    names = [each.name for each in known]
    chosen = contestant or ([n for n in _QUICK_CONTESTANTS if n in names] if quick else names)
    for name in chosen:
        if name not in names:
            raise OptionError(f"--contestant: found {name!r}, expected one of {', '.join(names)}")
    picked = tuple(each for each in known if each.name in chosen)
    made = _workloads(workloads, spec, shapes, size, batch, channels, quick)
    entries = [(each, picked) for each in made]
    if growth:
        # One diagram at a time, a large transformer takes hours: that is what peers are for. NumPy
        # interprets, and has nothing to compile.
        left_out = ("numpy", "nfn") if contestant is None else ()
        planned = tuple(
            each
            for each in picked
            if not each.name.endswith(" reference") and not each.name.startswith(left_out)
        )
        there = {each.name for each in made}
        entries += [(w, planned) for w in _grown(batch, channels) if w.name not in there]
    pace = _QUICK if quick else _FULL
    _go(_run(entries, device, dtype, threads, fresh, rounds, limit, pace, output), plots)


def _run(
    entries: Sequence[tuple[Workload, tuple[Contestant, ...]]],
    device: str,
    dtype: str,
    threads: int | None,
    fresh: bool,
    rounds: int | None,
    limit: float | None,
    pace: _Pace,
    output: Path,
) -> Run:
    from symcompile.bench.machine import usable_cores
    from symcompile.bench.runner import Run
    from symcompile.bench.subject import Setting
    from symcompile.check.draw import dtype_of
    from symcompile.cost.measure import SIZES

    if device not in ("cpu", "cuda"):
        raise OptionError(f"--device: found {device!r}, expected cpu or cuda")
    cores = usable_cores()
    threads = cores if threads is None else threads
    if not 1 <= threads <= cores:
        raise OptionError(f"--threads: found {threads}, expected 1 to {cores}")
    if rounds is not None and rounds < 1:
        raise OptionError(f"--rounds: found {rounds}, expected a positive int")
    if limit is not None and not limit > 0:
        raise OptionError(f"--limit: found {limit:g}, expected seconds above 0")
    dtype_of(dtype)
    entries_on_gpu, side_on_gpu = SIZES["gpu"]
    return Run(
        tuple(entries),
        Setting(device, dtype, threads, fresh),
        output / "records.jsonl",
        rounds=rounds or pace.rounds,
        budget=pace.budget,
        most=pace.most,
        limit=limit or pace.limit,
        command=shlex.join(["symcompile", *sys.argv[1:]]),
        copied=pace.copied if device == "cpu" else 4 * entries_on_gpu,
        side=pace.side if device == "cpu" else side_on_gpu,
    )


def _workloads(
    names: Sequence[str] | None,
    spec: Path | None,
    shapes: Path | None,
    size: Sequence[str] | None,
    batch: int | None,
    channels: int | None,
    quick: bool,
) -> list[Workload]:
    from symcompile.bench.workloads import WORKLOADS, own_workload, workload
    from symcompile.cli.request import label_sizes, named_tree
    from symcompile.spec import load_spec

    if spec is None and (shapes is not None or size):
        raise OptionError("--shapes and --size are for --spec FILE, which is not given")
    made = []
    if names or spec is None:
        default = _QUICK_WORKLOADS if quick else tuple(WORKLOADS)
        small = _QUICK_BATCH if quick and batch is None else batch
        made = [_resized(workload(name), small, channels) for name in names or default]
    if spec is not None:
        source = load_spec(spec)
        own = own_workload(
            source,
            shapes=None if shapes is None else named_tree("--shapes", shapes).to_python(),
            sizes=label_sizes(list(size or []), list(source.labels)),
            name=spec.stem,
            title=str(spec),
        )
        made.append(_resized(own, batch, channels))
    return made


def _grown(batch: int | None, channels: int | None) -> list[Workload]:
    from symcompile.bench.workloads import SERIES, series

    return [
        _resized(each, batch, channels)
        for kind, sizes in SERIES.items()
        for each in series(kind, sizes)
    ]


def _resized(made: Workload, batch: int | None, channels: int | None) -> Workload:
    from dataclasses import replace

    for option, value in (("--batch", batch), ("--channels", channels)):
        if value is not None and value < 1:
            raise OptionError(f"{option}: found {value}, expected a positive int")
    return replace(made, batch=batch or made.batch, channels=channels or made.channels)


def _go(wanted: Run, plots: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from symcompile.bench.plots import draw, require
    from symcompile.bench.report import json_text, markdown, tables, unmeasured
    from symcompile.bench.runner import pending, ready, run
    from symcompile.files import write_atomically

    if plots:
        require()
    ready(wanted)
    steps = sum(len(left) for _, left in pending(wanted)) * wanted.steps
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if steps and load > _BUSY:
        say(f"the machine is busy: load {load:.1f}; times taken beside other work are worth little")
    # Refreshed only between measurements: a thread that draws would take part in them.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
    )
    with progress:
        task = progress.add_task("", total=steps)

        def told(text: str, done: int) -> None:
            progress.update(task, advance=done, description=text or None, refresh=True)

        results = run(wanted, told)
    folder = wanted.records.parent
    drawn = draw(results, folder) if plots else []
    shown_there = [path.name for path in drawn if path.suffix == ".svg"]
    written = [
        write_atomically(folder / "results.json", json_text(results)),
        write_atomically(folder / "results.md", markdown(results, shown_there)),
        *drawn,
    ]
    names = [workload.name for workload, _ in wanted.entries]
    shown = console()
    for table in tables(results, names):
        shown.print(table)
    for line in unmeasured(results, names):
        say(line)
    say("wrote " + ", ".join(str(path) for path in written))
