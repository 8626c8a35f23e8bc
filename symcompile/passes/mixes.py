"""Pass: stack the inputs of a mix, or not.

In: a Program and a plan per mix. Out: one in which every mix of a stack of features is computed the
way that costs least: stacked (one copy, one matmul), separate (a matmul per feature, summed), or
with transposes moved behind the matmul (for a feature and its transposed copies, where there are
fewer channels out than in).

The one thing to know: all three read the same rows of the same weight, so nothing about weights
changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from symcompile.cost.memory import footprint, peak_entries
from symcompile.cost.objective import Objective
from symcompile.cost.work import work_of
from symcompile.ir import Builder, Concat, Mix, Program, Slice, Tensor, Transpose, Type, types_of
from symcompile.planner.decisions import MixPlan
from symcompile.spec import Perm

__all__ = ["FORMS", "MixPlan", "form_mixes", "plan_mixes"]

FORMS = ("stacked", "separate", "transposed after")

_CLOSE = 0.02
"""Forms that take this little longer, relative, are as good: a model of time is not that exact. The
one that holds least is taken."""


def plan_mixes(program: Program, objective: Objective) -> tuple[MixPlan, ...]:
    """The cheapest form of every mix that reads a stack nothing else reads."""
    types = types_of(program)
    sliced = {op.args[0] for op in program.ops if isinstance(op, Slice)}
    ranked: dict[object, tuple[tuple[str, float], ...]] = {}
    plans = []
    for number, (mix, stack) in _stacked_mixes(program).items():
        key = _kind(program, types, mix, stack, objective), number in sliced
        if key not in ranked:
            ranked[key] = _ranked(program, types, mix, stack, number not in sliced, objective)
        plans.append(MixPlan(mix.weight, ranked[key][0][0], ranked[key]))
    return tuple(plans)


def form_mixes(program: Program, plans: Iterable[MixPlan]) -> Program:
    """Compute every planned mix in its chosen form."""
    forms = {plan.weight: plan.chosen for plan in plans}
    mixes, types = _stacked_mixes(program), types_of(program)
    build = Builder(program)
    place: list[int] = []
    for number, op in enumerate(program.ops):
        if number in mixes:
            mix, stack = mixes[number]
            features = [_feature(program, arg, types[arg].width, place) for arg in stack.args]
            terms = _emit(build, mix, features, forms.get(mix.weight, "stacked"))
            place.append(build.add(terms))
        else:
            place.append(build.emit(replace(op, args=tuple(place[arg] for arg in op.args))))
    return build.program()


@dataclass(frozen=True, slots=True)
class _Feature:
    """One operand of a stack.

    Attributes:
        value: its number.
        width: its channels.
        base, axes: what it is a transpose of, and how; None if it is not one.
    """

    value: int
    width: int
    base: int | None
    axes: tuple[int, ...]


def _stacked_mixes(program: Program) -> dict[int, tuple[Mix, Concat]]:
    """Mixes by number, with the stack each reads alone."""
    readers = Counter(arg for op in program.ops for arg in op.args)
    found = {}
    for number, op in enumerate(program.ops):
        if isinstance(op, Mix):
            stack = program.ops[op.args[0]]
            if isinstance(stack, Concat) and readers[op.args[0]] == 1:
                found[number] = (op, stack)
    return found


def _feature(
    program: Program, arg: int, width: int, place: Mapping[int, int] | Sequence[int]
) -> _Feature:
    op = program.ops[arg]
    if isinstance(op, Transpose):
        return _Feature(place[arg], width, place[op.args[0]], op.axes)
    return _Feature(place[arg], width, None, ())


def _emit(build: Builder, mix: Mix, features: Sequence[_Feature], form: str) -> list[int]:
    """The terms whose sum is the mix."""
    if form == "stacked":
        stack = build.concat([feature.value for feature in features])
        return [build.mix(stack, mix.weight, mix.rows, mix.cols)]
    parts = []
    row = mix.rows[0]
    for feature in features:
        rows = (row, row + feature.width)
        row += feature.width
        if feature.base is not None and form == "transposed after":
            product = build.mix(feature.base, mix.weight, rows, mix.cols)
            parts.append(build.transpose(product, feature.axes))
        else:
            parts.append(build.mix(feature.value, mix.weight, rows, mix.cols))
    return parts


def _kind(
    program: Program, types: Sequence[Type], mix: Mix, stack: Concat, objective: Objective
) -> object:
    """All that the cost of a mix depends on: mixes of one kind are scored once."""
    sizes = dict(objective.sizes)
    sources: dict[int, int] = {}
    features = []
    for arg in stack.args:
        op = program.ops[arg]
        base, axes = (op.args[0], op.axes) if isinstance(op, Transpose) else (arg, ())
        features.append((sources.setdefault(base, len(sources)), axes, types[arg].width))
    extents = tuple(sizes.get(label) for label in types[stack.args[0]].labels)
    return extents, tuple(features), mix.cols[1] - mix.cols[0]


def _ranked(
    program: Program,
    types: Sequence[Type],
    mix: Mix,
    stack: Concat,
    whole: bool,
    objective: Objective,
) -> tuple[tuple[str, float], ...]:
    """Every form with its score, the one to take first."""
    transposes = any(isinstance(program.ops[arg], Transpose) for arg in stack.args)
    forms = FORMS if transposes else FORMS[:2]
    fragments = {form: _fragment(program, types, mix, stack, whole, form) for form in forms}
    scores = {form: objective.total(work_of(made), made) for form, made in fragments.items()}
    ranked = sorted(forms, key=lambda form: (scores[form], FORMS.index(form)))
    slack = _CLOSE if objective.minimize == "time" else 0.0
    close = [form for form in ranked if scores[form] <= scores[ranked[0]] * (1 + slack)]
    if len(close) > 1:
        sizes = objective.sizes_of(program)
        chosen = min(close, key=lambda form: peak_entries(footprint(fragments[form], sizes)))
        ranked.remove(chosen)
        ranked.insert(0, chosen)
    return tuple((form, scores[form]) for form in ranked)


def _fragment(
    program: Program,
    types: Sequence[Type],
    mix: Mix,
    stack: Concat,
    whole: bool,
    form: str,
) -> Program:
    """A form on its own: a program that starts from the features.

    Args:
        whole: the mix is not sliced: it lands on one output, where a smaller term is added to it.
    """
    sources = list(
        dict.fromkeys(
            program.ops[arg].args[0] if isinstance(program.ops[arg], Transpose) else arg
            for arg in stack.args
        )
    )
    inputs = tuple(
        Tensor((k,), tuple(map(Perm, types[value].labels)), types[value].width)
        for k, value in enumerate(sources)
    )
    width = mix.cols[1] - mix.cols[0]
    inputs += (Tensor((len(sources),), (), width),)
    weights = tuple(weight for weight in program.weights if weight[0] == mix.weight)
    like = replace(program, ops=(), inputs=inputs, outputs=(), weights=weights, in_place=True)
    build = Builder(like)
    place = {value: build.input(k) for k, value in enumerate(sources)}
    for arg in stack.args:
        op = program.ops[arg]
        if isinstance(op, Transpose):
            place[arg] = build.transpose(place[op.args[0]], op.axes)
    features = [_feature(program, arg, types[arg].width, place) for arg in stack.args]
    terms = _emit(build, mix, features, form)
    labels = types[stack.args[0]].labels
    if whole and labels:
        terms.append(build.broadcast(build.input(len(sources)), labels, ()))
    build.add(terms)
    return build.everything()
