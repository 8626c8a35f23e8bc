"""Is a perm_spec a symmetry of a network?

In: a network as a function of its parameters and inputs, real parameters, and a spec of them. Out:
a `SymmetryReport`, or a `CheckError` that names the labels whose permutation changes the function.
Parameters are those of one network, (*axes) each, in NumPy, torch or JAX.

The one thing to know: a permutation that moves nothing, or that the outputs do not notice, proves
nothing. So the report also names labels of size one, labels that the function does not depend on
(permuting a single axis of theirs changes nothing either), and tensors that are constant along
their permuted axes, such as fresh biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from symcompile.check.draw import draw_permutations, tolerance_of, wide
from symcompile.check.network import Moves, Network, Outputs, bind_network, to_numpy
from symcompile.errors import CheckError, OptionError
from symcompile.spec import Label, Path, Perm, format_label, format_path, format_place

__all__ = ["SymmetryReport", "check_symmetry"]

# A network is many layers deep, and each of them adds to the rounding of one.
_DEEP = {"float64": 1e-10, "complex128": 1e-10, "float32": 1e-4, "complex64": 1e-4}
_SHOWN = 6  # labels or tensors named in a message


@dataclass(frozen=True, slots=True)
class SymmetryReport:
    """Figures of a passed check.

    Attributes:
        max_error: largest change of any output met.
        scale: largest output.
        relative: `max_error` relative to `scale`.
        tolerance: what `relative` was held to.
        trials: how many permutations of all labels were tried.
        dtype: of the outputs, the coarsest.
        permuted: labels that were permuted; one of size 1 never is.
        unnoticed: of those, labels that the outputs do not depend on: the check says nothing there.
        unmoved: tensors with permuted axes that are constant along them, so that permuting never
            changed them: the check says nothing of their labels.
        unnamed: tensors of `params` that the spec does not name; they stayed as they were.
    """

    max_error: float
    scale: float
    relative: float
    tolerance: float
    trials: int
    dtype: str
    permuted: tuple[Label, ...]
    unnoticed: tuple[Label, ...]
    unmoved: tuple[Path, ...]
    unnamed: tuple[Path, ...]

    @property
    def conclusive(self) -> bool:
        """Whether every label was permuted with effect on every tensor that has it."""
        return bool(self.permuted) and not self.unnoticed and not self.unmoved

    def __str__(self) -> str:
        if not self.permuted:
            return (
                "nothing was permuted, since every label has size 1: the check says nothing; "
                "give larger tensors"
            )
        lines = [
            f"symmetric: outputs change by {self.max_error:.2g}, relative {self.relative:.2g} "
            f"(tolerance {self.tolerance:.2g}, {self.dtype}), in {self.trials} trials of "
            f"{len(self.permuted)} labels"
        ]
        if self.unnoticed:
            shown = _listed([format_label(label) for label in self.unnoticed])
            lines.append(f"says nothing of labels that the outputs do not depend on: {shown}")
        if self.unmoved:
            shown = _listed([format_path(path) for path in self.unmoved])
            lines.append(f"says nothing of tensors constant along their axes: {shown}")
        if self.unnamed:
            shown = _listed([format_path(path) for path in self.unnamed])
            lines.append(f"tensors that the spec does not name, and that stayed: {shown}")
        return "\n".join(lines)


def check_symmetry(
    model_fn: Callable[[Any, Any], Any],
    params: Any,
    spec: Any,
    inputs: Any,
    *,
    in_spec: Any = None,
    out_spec: Any = None,
    sizes: Mapping[Any, int] | None = None,
    trials: int = 3,
    seed: int = 0,
    tolerance: float | None = None,
) -> SymmetryReport:
    """Check that a network computes the same function after its parameters are permuted.

    Args:
        model_fn: `model_fn(params, inputs)` returns an array or a tree of arrays, and the same ones
            for the same arguments: switch dropout off.
        params: the parameters of one network, a tree like `spec` whose leaves have shape (*axes),
            of any real dtype; float64 tells most. Tensors that the spec does not name stay as they
            are. Draw those at random that are constant at first, such as biases: permuting them
            shows nothing.
        spec: labels of the axes of every parameter.
        inputs: what the network is tried on.
        in_spec, out_spec: labels of axes of the inputs and of the outputs, where permuting the
            parameters goes with permuting those: a spec of the last axes of every leaf, any number
            of axes may stand before them.
        sizes: by label, for what the shapes of the parameters do not tell, such as the heads of an
            axis that is heads times their width.
        trials: how many permutations of all labels to draw; besides, each label is permuted alone.
        seed: of permutations.
        tolerance: largest change allowed, relative to the largest output; default 1e-10 in float64,
            1e-4 in float32, and 16 units of rounding in half types.

    Returns:
        the figures, and what the check could not tell.

    Raises:
        CheckError: the outputs change; the message names the labels whose permutation alone changes
            them, and by how much. Or they differ from call to call, or are no numbers.
        ShapeError: parameters, inputs or outputs do not fit their spec.
        OptionError: an argument is not allowed.

    >>> rng = np.random.default_rng(0)
    >>> params = {"w": rng.normal(size=(3, 5)), "v": rng.normal(size=(5, 2))}
    >>> def model(p, x):
    ...     return np.tanh(x @ p["w"]) @ p["v"]
    >>> x = rng.normal(size=(7, 3))
    >>> report = check_symmetry(model, params, {"w": (None, "h"), "v": ("h", None)}, x)
    >>> report.relative < 1e-12, report.conclusive
    (True, True)
    >>> check_symmetry(model, params, {"w": (None, "h"), "v": ("g", None)}, x)
    Traceback (most recent call last):
    symcompile.errors.CheckError: not a symmetry: permuting the label 'g' alone changes y by ...
    """
    if trials < 1:
        raise OptionError(f"trials={trials}, expected 1 or more; nothing would be checked")
    network, before = bind_network(model_fn, params, spec, inputs, in_spec, out_spec, sizes)
    scale = max(float(np.abs(wide(value)).max(initial=0.0)) for _, value in before)
    coarsest = max((value.dtype for _, value in before), key=_allowed)
    allowed = _allowed(coarsest) if tolerance is None else tolerance
    slack = allowed * scale
    _require_repeatable(network, before, slack)

    rng = np.random.default_rng(seed)
    draws = [draw_permutations(rng, network.sizes) for _ in range(trials)]
    # One by one too: two labels of size two, which can only be swapped, pass for one together.
    alone = [{label: draws[0][label]} for label, size in network.sizes.items() if size > 1]
    largest = 0.0
    for moves in [*alone, *draws]:
        error, _ = network.change(before, moves)
        if not error <= slack:
            raise CheckError(_message(network, before, draws[0] | moves, slack, scale))
        largest = max(largest, error)

    permuted = tuple(label for label, size in network.sizes.items() if size > 1)
    return SymmetryReport(
        max_error=largest,
        scale=scale,
        relative=largest / scale if scale else 0.0,
        tolerance=allowed,
        trials=trials,
        dtype=coarsest.name,
        permuted=permuted,
        unnoticed=tuple(
            label for label in permuted if not _noticed(network, before, label, draws[0], slack)
        ),
        unmoved=_unmoved(network, draws),
        unnamed=network.unnamed(),
    )


def _allowed(dtype: np.dtype[Any]) -> float:
    return _DEEP.get(dtype.name, tolerance_of(dtype))


def _require_repeatable(network: Network, before: Outputs, slack: float) -> None:
    """Raise `CheckError` where the same call gives other outputs, or outputs are no numbers."""
    error, path = network.change(before, {})
    if not error <= slack:
        raise CheckError(
            f"{format_place(path, 'y')}: model_fn gives outputs that differ by {error:.3g} for the "
            "same parameters and inputs; switch off dropout and other randomness, and see to "
            "finite outputs"
        )


def _message(network: Network, before: Outputs, moves: Moves, slack: float, scale: float) -> str:
    """Which labels change the outputs when they alone are permuted, the worst first."""
    alone = {label: network.change(before, {label: move}) for label, move in moves.items()}
    guilty = sorted(
        ((error, label, path) for label, (error, path) in alone.items() if not error <= slack),
        key=lambda entry: -entry[0],
    )
    told = [
        f"permuting the label {format_label(label)} alone changes {format_place(path, 'y')} by "
        f"{error:.3g}"
        for error, label, path in guilty[:_SHOWN]
    ] or ["no label alone changes the outputs, all together do"]
    if len(guilty) > _SHOWN:
        told.append(f"{len(guilty) - _SHOWN} more labels do")
    places = ""
    if guilty:
        paths = [leaf.path for leaf in network.spec.leaves if guilty[0][1] in leaf.labels]
        places = (
            f" {format_label(guilty[0][1])} stands at {_listed([format_path(p) for p in paths])}: "
            "look for an axis that lacks it, has it without need, or is stacked of parts."
        )
    return (
        f"not a symmetry: {'; '.join(told)}, where outputs reach {scale:.3g} (allowed "
        f"{slack:.1g}).{places} If the spec is right, the network's rounding is coarser than its "
        "dtype says: raise tolerance="
    )


def _noticed(network: Network, before: Outputs, label: Label, moves: Moves, slack: float) -> bool:
    """Whether breaking up a label changes the outputs, so that keeping it together proves a thing.

    Its axes are permuted one at a time. A label with one axis in all cannot be broken up so: the
    entries of its tensor are shuffled instead.
    """
    leaves = network.leaves
    places = [
        (index, position)
        for index, leaf in enumerate(network.spec.leaves)
        for position, atom in enumerate(leaf.atoms)
        if atom == Perm(label)
    ]
    for index, position in places:
        if len(places) == 1:
            moved = network.shuffled(index)
        else:
            moved = network.along(index, position, moves[label])
        after = network.outputs([*leaves[:index], moved, *leaves[index + 1 :]], network.inputs)
        pairs = zip(after, before, strict=True)
        changes = [np.abs(wide(new) - wide(old)).max(initial=0.0) for (_, new), (_, old) in pairs]
        if not max(changes) <= slack:
            return True
    return False


def _unmoved(network: Network, draws: Sequence[Moves]) -> tuple[Path, ...]:
    """Tensors that one of their labels, permuted alone, never changed."""
    found = []
    for index, leaf in enumerate(network.spec.leaves):
        value = to_numpy(network.leaves[index])
        labels = {label for label in leaf.labels if network.sizes[label] > 1}
        if any(
            all(
                np.array_equal(value, to_numpy(network.permuted(index, {label: moves[label]})))
                for moves in draws
            )
            for label in labels
        ):
            found.append(leaf.path)
    return tuple(found)


def _listed(shown: Sequence[str]) -> str:
    more = f", ... ({len(shown)} in all)" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
