"""The whole of symcompile on real networks, with commentary: `make demo`.

In: nothing but scikit-learn's bundled digits. Out: a story in seven steps on the terminal, the
claims it checked, and exit status 1 if one of them does not hold.

The one thing to know: every figure is measured here and now, on networks trained here and now.
Files go to a temporary folder that is removed.

    python examples/demo.py            # under a minute on two cores
    python examples/demo.py --quick    # fewer networks, fewer repetitions
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a script finds only its own folder; JAX would look for accelerators
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import symcompile as sc
from examples import zoo
from examples.families import (
    BACKENDS,
    CHANNELS,
    Family,
    compile_family,
    difference,
    options,
    permuted,
    read_outputs,
)
from symcompile.spec import dumps_spec

LIMIT = 1e-5  # relative: float32 rounds to 6e-8, and sums have some hundred terms
PROGRAMS = ("reference", "factored")
TRAINERS: Mapping[str, Callable[..., zoo.Zoo]] = {
    "MLP": zoo.train_mlps,
    "CNN": zoo.train_cnns,
    "RNN": zoo.train_rnns,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: (networks, training steps) of each family, and timed calls."""

    networks: Mapping[str, tuple[int, int]]
    calls: int


FULL = Scale({"MLP": (300, 300), "CNN": (24, 150), "RNN": (24, 300)}, calls=30)
QUICK = Scale({"MLP": (12, 120), "RNN": (4, 120)}, calls=5)


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the demo says is so: every figure found is at most `limit`.

    `broken` are the same figures where the symmetry is broken on purpose: each must exceed the
    limit, or the claim would hold of anything.
    """

    text: str
    found: Sequence[float]
    limit: float = LIMIT
    broken: Sequence[float] = ()

    @property
    def holds(self) -> bool:
        """Not so without a figure, nor with a NaN.

        >>> Claim("", [1e-7], broken=[1.0]).holds
        True
        >>> Claim("", [1e-7, float("nan")]).holds, Claim("", [1e-7], broken=[1e-7]).holds
        (False, False)
        """
        kept = all(figure <= self.limit for figure in self.found)
        return bool(self.found) and kept and all(figure > self.limit for figure in self.broken)


def main(arguments: list[str] | None = None) -> int:
    """Tell the story; 0 if every claim holds, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer networks and repetitions")
    scale = QUICK if parser.parse_args(arguments).quick else FULL
    console = Console(highlight=False)
    start = time.perf_counter()
    torch.manual_seed(0)
    try:
        with tempfile.TemporaryDirectory(prefix="symcompile-demo-") as folder:
            claims = list(tell(console, scale, Path(folder)))
    except sc.SymcompileError as error:
        console.print(f"{type(error).__name__}: {error}", markup=False, style="red")
        return 1
    return summarise(console, claims, time.perf_counter() - start)


def tell(console: Console, scale: Scale, folder: Path) -> Iterator[Claim]:
    """The seven steps, in order."""
    zoos = train(console, scale)
    yield keep_predictions(console, zoos)
    families = compile_layers(console, zoos, folder)
    yield compare_backends(console, families)
    yield from check_equivariance(console, families)
    yield from run_exported(console, families[0])
    yield time_programs(console, families, scale.calls)


def train(console: Console, scale: Scale) -> list[zoo.Zoo]:
    """Step 1: train every family of networks."""
    heading(console, 1, "Train networks on handwritten digits")
    parts = (
        TextColumn("   {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    start = time.perf_counter()
    zoos = []
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as p:
        tasks = {
            name: p.add_task(f"{count} {name}s, steps", total=steps)
            for name, (count, steps) in scale.networks.items()
        }
        for name, (count, steps) in scale.networks.items():

            def told(done: int, total: int, name: str = name) -> None:
                p.update(tasks[name], completed=done, total=total)

            zoos.append(TRAINERS[name](count, steps=steps, progress=told))
    seconds = time.perf_counter() - start
    rows = []
    for it in zoos:
        parameters = sum(leaf[0].size for leaf in jax.tree.leaves(it.params))
        shares = [f"{np.quantile(it.accuracies, q):.1%}" for q in (0, 0.5, 1)]
        rows.append((it.name.upper(), len(it.accuracies), f"{parameters:,}", *shares))
    table(
        console, ("", "networks", "parameters of each", "accuracy: worst", "median", "best"), rows
    )
    say(
        console,
        f"{sum(len(it.accuracies) for it in zoos)} networks in {seconds:.1f} s, each with an "
        "initialisation, batches and a learning rate of its own.",
    )
    return zoos


def keep_predictions(console: Console, zoos: list[zoo.Zoo]) -> Claim:
    """Step 2: a network permuted by its spec predicts what it did."""
    heading(console, 2, "Permute their hidden neurons: every prediction stays")
    images, labels = zoo.digits().test_images, zoo.digits().test_labels
    rows, found, broken = [], [], []
    for it in zoos:
        logits = jax.jit(jax.vmap(it.predict, in_axes=(0, None)))
        permutations = zoo.draw_permutations(it.params, it.spec, np.random.default_rng(1))
        first = next(iter(it.spec))
        alone = zoo.apply_permutations(it.params[first], it.spec[first], permutations)
        whole = zoo.apply_permutations(it.params, it.spec, permutations)
        before, after, torn = (
            np.asarray(logits(params, images))
            for params in (it.params, whole, {**it.params, first: alone})
        )
        found.append(difference(after, before))
        broken.append(difference(torn, before))
        changed = (after.argmax(-1) != before.argmax(-1)).sum()
        shares = [f"{(y.argmax(-1) == labels).mean():.1%}" for y in (before, after, torn)]
        predictions = f"{changed} of {len(images) * len(before):,}"
        rows.append((it.name.upper(), f"{found[-1]:.1e}", predictions, *shares))
    columns = ("", "logits change", "predictions", "accuracy", "permuted", "one layer only")
    table(console, columns, rows)
    say(
        console,
        "One reordering goes through all the tensors that have the axis; which these are is what "
        "the perm_spec says. In the last column it went through the first layer alone.",
    )
    return Claim("permuted neurons leave the logits as they were", found, broken=broken)


def compile_layers(console: Console, zoos: list[zoo.Zoo], folder: Path) -> list[Family]:
    """Step 3: compile each family's spec for every backend."""
    heading(console, 3, "Compile an equivariant layer from each perm_spec, for torch and JAX")
    say(console, "The spec of the MLPs as a file; null is an axis that nothing permutes:")
    code(console, dumps_spec(zoos[0].spec, "yaml").splitlines())
    start = time.perf_counter()
    with console.status("compiling"):
        families = [compile_family(it, folder / it.name) for it in zoos]
    seconds = time.perf_counter() - start
    console.print()
    shape = " x ".join(map(str, families[0].x["Dense_0"]["kernel"].shape))
    say(
        console,
        f"A family goes in as one batch, with a channel axis: the first kernels as {shape}. Every "
        f"tensor comes out with {CHANNELS} channels.",
    )
    rows = []
    for family in families:
        plan = family.layers["torch"].plan
        tensors = len(jax.tree.leaves(family.x))
        rows.append((family.name, tensors, plan.diagrams, plan.planned.mixes, f"{plan.weights:,}"))
    table(console, ("", "tensors", "diagrams", "in mixes", "weights"), rows)
    say(
        console,
        f"{len(families) * len(BACKENDS)} layers in {seconds:.1f} s. The plan for the "
        f"{families[-1].name}s:",
    )
    code(console, families[-1].layers["torch"].plan.summary().splitlines())
    return families


def compare_backends(console: Console, families: list[Family]) -> Claim:
    """Step 4: the same weights, through a safetensors file, on both backends."""
    heading(console, 4, "Give both backends the same weights")
    rows, found = [], []
    for family in families:
        with console.status(f"running the {family.name}s' layers"):
            trees = [family.runs[backend](family.x) for backend in BACKENDS]
        pairs = list(zip(*map(jax.tree.leaves, trees), strict=True))
        found.append(difference(*trees))
        outputs = sum(a.size for a, _ in pairs)
        largest = max(np.abs(a).max() for a, _ in pairs)
        apart = max(np.abs(a - b).max() for a, b in pairs)
        rows.append((family.name, f"{outputs:,}", f"{largest:.2f}", f"{apart:.1e}"))
    table(console, ("", "outputs", "largest output", "largest difference"), rows)
    say(
        console,
        "Saved from torch by sc.save_weights and read into JAX by sc.load_weights: weights have "
        "the same names and shapes in every backend.",
    )
    return Claim("torch and JAX give the same outputs", found)


def check_equivariance(console: Console, families: list[Family]) -> list[Claim]:
    """Step 5: layer(permuted x) against permuted layer(x), on trained weights and on noise."""
    heading(console, 5, "Check equivariance: layer(permuted x) = permuted layer(x)")
    rows, found, broken, drawn = [], [], [], []
    for family in families:
        spec = family.zoo.spec
        permutations = zoo.draw_permutations(family.zoo.params, spec, np.random.default_rng(2))
        moved = permuted(family.x, spec, permutations)
        for backend, run in family.runs.items():
            with console.status(f"checking the {family.name}s' layer on {backend}"):
                after, before = run(moved), run(family.x)
                report = sc.check_equivariance(
                    family.layers[backend], batch_shapes=((2,),), trials=1, dtype="float32"
                )
            found.append(difference(after, permuted(before, spec, permutations)))
            broken.append(difference(after, before))
            drawn.append(report.relative)
            figures = [f"{figures[-1]:.1e}" for figures in (found, broken, drawn)]
            rows.append((f"{family.name}, {backend}", *figures))
    columns = ("", "trained weights", "not permuted", "sc.check_equivariance")
    table(console, columns, rows)
    say(
        console,
        "Differences, relative to the largest entry; in the middle, to layer(x) left as it is. "
        "sc.check_equivariance draws its own weights, inputs and permutations, and raises if a "
        "layer fails.",
    )
    return [
        Claim("the layers are equivariant on trained weights", found, broken=broken),
        Claim("and on random inputs, by sc.check_equivariance", drawn),
    ]


def run_exported(console: Console, family: Family) -> list[Claim]:
    """Step 6: the generated file, in a process where symcompile cannot be imported."""
    heading(console, 6, "Export the source and run it where symcompile is not")
    ours, errors, rows = [], [], []
    for backend, run in family.runs.items():
        path = family.folder / f"layer_{backend}.py"
        sc.export(family.zoo.spec, path, backend=backend, **options(family.zoo))
        with console.status(f"running {path.name}"):
            told = child("standalone.py", backend, str(family.folder))
            outputs = read_outputs(family, f"outputs-standalone-{backend}")
        errors.append(difference(outputs, run(family.x)))
        ours.append(len(told["imported"]) + (told["refusal"] is None))
        lines = len(path.read_text(encoding="utf-8").splitlines())
        rows.append((path.name, lines, f"{errors[-1]:.1e}", told["refusal"] or "nothing"))
    table(console, ("", "lines", "outputs differ by", "`import symcompile` there"), rows)
    say(
        console,
        "A part of layer_torch.py, whose names come from the spec; what `keep` is given is kept "
        "for the gradient of the weight that multiplies it:",
    )
    code(console, excerpt((family.folder / "layer_torch.py").read_text(encoding="utf-8")))
    return [
        Claim("exported files import nothing of symcompile", ours, limit=0),
        Claim("and give what the layers give", errors),
    ]


def time_programs(console: Console, families: list[Family], calls: int) -> Claim:
    """Step 7: one basis map at a time against factored, each in a fresh process."""
    heading(console, 7, "Time a call: one basis map at a time, and factored")
    folders = [str(family.folder) for family in families]
    flags = ["--out-channels", str(CHANNELS), "--calls", str(calls)]
    rows, found = [], []
    for backend, label in (("torch", "torch, eager"), ("jax", "JAX, jit")):
        seconds = {}
        for program in PROGRAMS:
            with console.status(f"timing {backend}, {program}"):
                seconds[program] = child("timing.py", backend, program, *folders, *flags)
        for family in families:
            slow, fast = (seconds[program][family.folder.name] for program in PROGRAMS)
            times = (f"{1e3 * slow:.3g} ms", f"{1e3 * fast:.3g} ms", f"{slow / fast:.1f} x")
            rows.append((f"{family.name}, {label}", *times))
            expected, outputs = (read_outputs(family, f"outputs-{p}-{backend}") for p in PROGRAMS)
            found.append(difference(outputs, expected))
    table(console, ("", "one at a time", "factored", "faster by"), rows)
    say(
        console,
        f"Medians of {calls} calls on all networks of a family, on one core, each program in a "
        "process of its own. XLA finds some of the shared work by itself; eager torch does not.",
    )
    return Claim("factored programs give what one map at a time gives", found)


def summarise(console: Console, claims: list[Claim], seconds: float) -> int:
    """Every claim with its worst figure, also where broken on purpose; the exit status."""
    console.print("\n[bold]What was checked[/]")
    rows = [
        (
            claim.text,
            f"{max(claim.found, default=float('nan')):.1e}",
            f"{claim.limit:.0e}" if claim.limit else "0",
            f"{min(claim.broken):.1e}" if claim.broken else "",
            "[green]holds[/]" if claim.holds else "[bold red]FAILS[/]",
        )
        for claim in claims
    ]
    table(console, ("", "found", "allowed", "broken", ""), rows)
    failed = sum(not claim.holds for claim in claims)
    verdict = (
        f"[bold red]{failed} of {len(claims)} claims FAIL[/]"
        if failed
        else f"[bold green]All {len(claims)} claims hold[/]"
    )
    console.print(f"{verdict}, in {seconds:.0f} s.")
    return 1 if failed else 0


def child(script: str, *arguments: str) -> Any:
    """What a script beside this one prints, as JSON, run in a fresh process."""
    command = [sys.executable, str(Path(__file__).resolve().with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def excerpt(source: str) -> list[str]:
    """The first mix of a generated torch file."""
    groups = [group.split("\n\n")[0] for group in source.split("    # Signature")[1:]]
    mix = next(group for group in groups if "torch.cat((" in group)
    head, split, rest = mix.partition(".split(")
    return textwrap.dedent(f"    # Signature{head}{split}{rest.splitlines()[0]}").splitlines()


def heading(console: Console, number: int, title: str) -> None:
    """A numbered line that opens a step."""
    console.print(f"\n[bold]{number}  {title}[/]")


def say(console: Console, text: str) -> None:
    """Prose, indented as the tables are."""
    for line in textwrap.wrap(text, console.width - 3):
        console.print(f"   {line}", markup=False)


def code(console: Console, lines: list[str]) -> None:
    """Text laid out by someone else, set apart."""
    console.print()
    for line in lines:
        console.print(f"     {line}", markup=False, style="cyan", soft_wrap=True)


def table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table without lines: names left, figures right."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*map(str, row))
    console.print(Padding(shown, (0, 0, 0, 3), expand=False))


if __name__ == "__main__":
    sys.exit(main())
