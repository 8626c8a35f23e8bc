"""The commands and their help.

In: `sys.argv`. Out: what each command prints, and the exit code.
The one thing to know: `_layer_command` gives every command the parameters of `read_request`, so an
option is written, explained and parsed in one place.
"""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from symcompile import __version__
from symcompile.cli.bench import HELP as _BENCH_HELP
from symcompile.cli.bench import bench
from symcompile.cli.request import Request, read_request
from symcompile.cli.show import console, escaped, say
from symcompile.errors import BackendError, CheckError, OptionError, SymcompileError

__all__ = ["app", "main"]

FORMAT = """\
A SPEC file holds a tree like your tensors. Mappings are containers. A list is one tensor: for each
of its axes, the label of the permutation that moves it. Axes with equal labels are permuted
together.

\b
  params:
    Dense_0:
      kernel: [0, 1]             # two axes; columns move with the bias
      bias: [1]
    Conv_0:
      kernel: [1, 2, null, null] # null: an axis no permutation moves,
      taps: [2, {fixed: 9}]      #   here one of stated size
      flat: [[heads, 3]]         # one stored axis that is a product, outer part first
    scale: []                    # a scalar
    layers: {$list: [[0], [0]]}  # a list of tensors

A label is a string or an int. The file is data: nothing in it is evaluated. Tensors have any
batch axes in front of those listed and one channel axis after them.
"""


class _Commands(TyperGroup):
    """Turns what a user can mend into one message and exit code 2; a failed check into 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CheckError as error:
            say(f"Check failed: {error}")
            raise typer.Exit(1) from None
        except SymcompileError as error:
            say(f"Error: {escaped(str(error), keep='')}")
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            say("Error: no space is left where stdout, or a temporary file, is written")
            _give_up_stdout()
            raise typer.Exit(2) from None


def _give_up_stdout() -> None:
    """Let what could not be written go, or Python tries again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


app = typer.Typer(
    name="symcompile",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    # Plain help: markup would take the brackets of a spec for styles.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Entry point of the `symcompile` command."""
    app(prog_name="symcompile")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"symcompile {__version__}")
        raise typer.Exit


@app.callback(
    help="Compile a permutation symmetry into a complete, fast equivariant linear layer.\n\n"
    "You say which permutation acts on each axis of your tensors; you get a linear layer that "
    "respects them all and can represent every linear map that does, as plain PyTorch or JAX "
    "source.\n\n\b\n"
    "  symcompile explain spec.yaml\n"
    "  symcompile compile spec.yaml --backend torch --out-channels 16 -o layer.py\n"
    "  symcompile check spec.yaml --backend all\n"
    "  symcompile bench --quick\n\n"
    "`symcompile COMMAND --help` shows a command's options and the format of a spec file."
)
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _layer_command(command: Callable[..., None]) -> Callable[..., None]:
    """Call `command(request, **own)` with a `Request` made of the parameters they all share."""
    shared = inspect.signature(read_request, eval_str=True).parameters
    _, *own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        request = read_request(**{name: given.pop(name) for name in shared})
        command(request, **given)

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in (*shared.values(), *own)
    ]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _compile(
    request: Request,
    backend: Annotated[
        str,
        typer.Option("--backend", "-b", metavar="NAME", help="torch, jax, or a registered one."),
    ] = "torch",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; default: stdout."),
    ] = None,
) -> None:
    from symcompile.api import compile_spec
    from symcompile.codegen import get_backend
    from symcompile.errors import OptionError
    from symcompile.files import write_atomically

    chosen = get_backend(backend)
    compiled = compile_spec(request.spec, request.out_spec, **request.options)
    source = chosen.emit(compiled)
    if output is None or str(output) == "-":
        typer.echo(source.encode("utf-8"), nl=False)
        return
    # os.path.exists: what cannot be looked up is for the writer to refuse.
    if os.path.exists(output) and output.samefile(request.file):
        raise OptionError(f"-o {output} is the spec itself; give the source a file of its own")
    write_atomically(output, source)
    plan = compiled.plan
    say(f"{output}: {backend} source, {plan.diagrams:,} diagrams, {plan.weights:,} weights")


def _explain(
    request: Request,
    program: Annotated[
        bool, typer.Option("--program", help="Print the whole program, not only its beginning.")
    ] = False,
    why: Annotated[
        bool,
        typer.Option("--why", help="Print every decision of the planner and what else it cost."),
    ] = False,
) -> None:
    from symcompile.api import compile_spec
    from symcompile.cli.explain import explain

    compiled = compile_spec(request.spec, request.out_spec, **request.options)
    explain(compiled, str(request.file), console(), whole_program=program, why=why)


def _check(
    request: Request,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME|all",
            help="Backend to check (default numpy); may be given many times; all: all installed.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, data, permutations.")] = 0,
) -> None:
    from symcompile.cli.checks import run_checks

    if seed < 0:
        raise OptionError(f"--seed: found {seed}, expected an int of at least 0")
    run_checks(request, _backends(backend or ["numpy"]), seed, console())


def _backends(asked: list[str]) -> list[str]:
    """Names without repeats; "all" stands for every backend whose framework is installed."""
    from symcompile.codegen import backend_names, get_backend

    names: list[str] = []
    for name in asked:
        if name != "all":
            get_backend(name)
            names.append(name)
            continue
        for each in backend_names():
            try:
                get_backend(each)
            except BackendError as error:
                say(f"skipped: {error}")
            else:
                names.append(each)
    return list(dict.fromkeys(names))


_COMPILE_HELP = f"""\
Compile a spec to source of a layer: a torch nn.Module, or JAX's init and apply. The source imports
its framework only. Without -o it goes to stdout.

\b
  symcompile compile spec.yaml --backend torch --out-channels 16 -o layer.py
  symcompile compile graph.json --backend jax --in-channels 8 --size node=50 > layer.py

{FORMAT}"""

_EXPLAIN_HELP = f"""\
Show what a spec means and what is computed: tensors, sizes, half-diagrams, signatures, exact
counts, the plan and the program.

\b
  symcompile explain spec.yaml
  symcompile explain spec.yaml --shapes shapes.yaml --program

{FORMAT}"""

_CHECK_HELP = f"""\
Compile a spec and test the layer: equivariance under random permutations, agreement of backends,
and, if small enough, that every equivariant map is reached. Exit code 1 if a check fails.

\b
  symcompile check spec.yaml --backend all
  symcompile check graph.json --backend torch --size node=3

{FORMAT}"""

for _name, _command, _help, _short in (
    ("compile", _compile, _COMPILE_HELP, "Compile a spec to source."),
    ("export", _compile, _COMPILE_HELP, "The same as compile."),
    ("explain", _explain, _EXPLAIN_HELP, "Show what a spec means and what is computed."),
    ("check", _check, _CHECK_HELP, "Compile a spec and test the layer."),
):
    app.command(_name, help=_help, short_help=_short)(_layer_command(_command))
app.command("bench", help=_BENCH_HELP, short_help="Time backends against each other and peers.")(
    bench
)
