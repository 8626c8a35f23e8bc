"""Pass: how the inputs and the outputs of a mix are put together.

In: a Program and a plan per mix. Out: one in which every mix is computed the way that costs least.
Its inputs, a stack of features, are stacked (one copy, one matmul), separate (a matmul per feature,
summed), or have their transposes moved behind the matmul (for a feature and its transposed copies,
where there are fewer channels out than in). Its outputs are stacked, slices of one product, or
apart, a matmul each: the features are read again, but no slice has to be copied to become an
output, and large sums can be made in place.

The one thing to know: every form reads the same rows and columns of the same weight, so nothing
about weights changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from symcompile.cost.memory import footprint, peak_entries
from symcompile.cost.objective import Objective
from symcompile.ir import (
    Add,
    Builder,
    Concat,
    Const,
    Mix,
    Output,
    Program,
    Slice,
    Tensor,
    Transpose,
    Type,
    large_sums,
    readers_of,
    types_of,
)
from symcompile.planner.decisions import MixPlan
from symcompile.spec import Perm

__all__ = ["APART", "FORMS", "MixPlan", "form_mixes", "plan_mixes"]

_INPUTS = ("stacked", "transposed after", "separate")

APART = ", outputs apart"
"""Follows what is done about the inputs, where the outputs are not stacked."""

FORMS = (*_INPUTS, *(form + APART for form in _INPUTS))
"""All there is to choose from; a mix that nothing slices has its outputs together in any form."""

_CLOSE = 0.02
"""Forms that take this little longer, relative, are as good: a model of time is not that exact. The
one that holds least is taken."""


def plan_mixes(program: Program, objective: Objective) -> tuple[MixPlan, ...]:
    """The cheapest form of every mix that can be computed in several."""
    types = types_of(program)
    ranked: dict[object, tuple[tuple[str, float], ...]] = {}
    plans = []
    for site in _sites(program, types).values():
        forms = _forms(program, site)
        if len(forms) == 1:
            continue
        key = _kind(program, types, site, objective)
        if key not in ranked:
            ranked[key] = _ranked(program, types, site, forms, objective)
        plans.append(MixPlan(site.mix.weight, ranked[key][0][0], ranked[key]))
    return tuple(plans)


def form_mixes(program: Program, plans: Iterable[MixPlan]) -> Program:
    """Compute every planned mix in its chosen form."""
    forms = {plan.weight: plan.chosen for plan in plans}
    types = types_of(program)
    sites = _sites(program, types)
    build = Builder(program)
    place: list[int] = []
    apart: dict[int, int] = {}  # slices that are a product of their own
    for number, op in enumerate(program.ops):
        if number in sites:
            site = sites[number]
            form = forms.get(site.mix.weight, "stacked")
            features = _features(program, types, site, place)
            made = [build.add(terms) for terms in _emit(build, site, features, form)]
            place.append(made[0])
            if _is_apart(site, form):
                apart.update(zip((part.number for part in site.parts), made, strict=True))
        elif number in apart:
            place.append(apart[number])
        else:
            place.append(build.emit(op.renumbered(place)))
    return build.program()


_Landing = Literal["sum", "output", "elsewhere"]


@dataclass(frozen=True, slots=True)
class _Part:
    """One slice of a mix.

    Attributes:
        number: of the slice.
        start, stop: its channels.
        landing: "sum" if it is added to something as it is, "output" if it is one by itself.
    """

    number: int
    start: int
    stop: int
    landing: _Landing


@dataclass(frozen=True, slots=True)
class _Site:
    """One mix, and what surrounds it.

    Attributes:
        mix: the op.
        stack: the features it reads, one if they are not a stack that nothing else reads.
        parts: all that reads it, if these are slices.
        is_large: whether sums as large as what it makes are accumulated into a mix.
    """

    mix: Mix
    stack: tuple[int, ...]
    parts: tuple[_Part, ...]
    is_large: bool


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


def _sites(program: Program, types: Sequence[Type]) -> dict[int, _Site]:
    """Mixes by number, but for those of the constant."""
    readers, is_large = readers_of(program), large_sums(program)

    def landing(number: int) -> _Landing:
        for place in readers[number]:
            reader = program.ops[place]
            if isinstance(reader, Output):
                return "output"
            if isinstance(reader, Transpose) and (found := landing(place)) != "elsewhere":
                return found  # a view: of all terms, or of their sum
            if isinstance(reader, Add) and is_large(types[number]):
                return "sum" if len(reader.args) > 1 else "output"
        return "elsewhere"

    found = {}
    for number, op in enumerate(program.ops):
        if not isinstance(op, Mix) or isinstance(program.ops[op.args[0]], Const):
            continue
        source = program.ops[op.args[0]]
        alone = isinstance(source, Concat) and len(readers[op.args[0]]) == 1
        slices = [(reader, program.ops[reader]) for reader in readers[number]]
        parts = tuple(
            _Part(reader, part.start, part.stop, landing(reader))
            for reader, part in slices
            if isinstance(part, Slice)
        )
        if len(parts) < len(slices):
            parts = ()
        stack = source.args if alone else op.args
        made = [part.number for part in parts] or [number]
        large = any(is_large(types[value]) for value in made)
        found[number] = _Site(op, stack, parts, large)
    return found


def _forms(program: Program, site: _Site) -> list[str]:
    """All that can be done about a mix."""
    forms = ["stacked"]
    if len(site.stack) > 1:
        # The first of those that cost the same is taken: what is read twice is one value then.
        if any(isinstance(program.ops[arg], Transpose) for arg in site.stack):
            forms.append("transposed after")
        forms.append("separate")
    # Outputs apart only cost more where everything is spread, or too small to be summed in place.
    if len(site.parts) > 1 and any(part.landing != "elsewhere" for part in site.parts):
        forms += [form + APART for form in forms]
    return forms


def _is_apart(site: _Site, form: str) -> bool:
    return form.endswith(APART) and bool(site.parts)


def _features(
    program: Program, types: Sequence[Type], site: _Site, place: Mapping[int, int] | Sequence[int]
) -> list[_Feature]:
    return [_feature(program, arg, types[arg].width, place) for arg in site.stack]


def _feature(
    program: Program, arg: int, width: int, place: Mapping[int, int] | Sequence[int]
) -> _Feature:
    op = program.ops[arg]
    if isinstance(op, Transpose):
        return _Feature(place[arg], width, place[op.args[0]], op.axes)
    return _Feature(place[arg], width, None, ())


def _emit(build: Builder, site: _Site, features: Sequence[_Feature], form: str) -> list[list[int]]:
    """The terms whose sum is the mix; or, with outputs apart, those of every part."""
    mix, inputs = site.mix, form.removesuffix(APART)
    if not _is_apart(site, form):
        return [_terms(build, mix, features, inputs, mix.cols)]
    first = mix.cols[0]
    return [
        _terms(build, mix, features, inputs, (first + part.start, first + part.stop))
        for part in site.parts
    ]


def _terms(
    build: Builder, mix: Mix, features: Sequence[_Feature], form: str, cols: tuple[int, int]
) -> list[int]:
    """The terms whose sum is the mix into some columns."""
    if form == "stacked":
        stack = build.concat([feature.value for feature in features])
        return [build.mix(stack, mix.weight, mix.rows, cols)]
    parts = []
    row = mix.rows[0]
    for feature in features:
        rows = (row, row + feature.width)
        row += feature.width
        if feature.base is not None and form == "transposed after":
            product = build.mix(feature.base, mix.weight, rows, cols)
            parts.append(build.transpose(product, feature.axes))
        else:
            parts.append(build.mix(feature.value, mix.weight, rows, cols))
    return parts


def _kind(program: Program, types: Sequence[Type], site: _Site, objective: Objective) -> object:
    """All that the cost of a mix depends on: mixes of one kind are scored once."""
    sizes = dict(objective.sizes)
    sources: dict[int, int] = {}
    features = []
    for arg in site.stack:
        op = program.ops[arg]
        base, axes = (op.args[0], op.axes) if isinstance(op, Transpose) else (arg, ())
        features.append((sources.setdefault(base, len(sources)), axes, types[arg].width))
    extents = tuple(sizes.get(label) for label in types[site.stack[0]].labels)
    parts = tuple((part.start, part.stop, part.landing) for part in site.parts)
    return extents, tuple(features), site.mix.cols[1] - site.mix.cols[0], parts, site.is_large


def _ranked(
    program: Program,
    types: Sequence[Type],
    site: _Site,
    forms: Sequence[str],
    objective: Objective,
) -> tuple[tuple[str, float], ...]:
    """Every form with its score, the one to take first."""
    fragments = {form: _fragment(program, types, site, forms, form) for form in forms}
    scores = {form: objective.cost_of(made) for form, made in fragments.items()}
    ranked = sorted(forms, key=lambda form: (scores[form], forms.index(form)))
    slack = _CLOSE if objective.minimize == "time" else 0.0
    close = [form for form in ranked if scores[form] <= scores[ranked[0]] * (1 + slack)]
    if len(close) > 1:
        sizes = objective.sizes_of(program)
        chosen = min(close, key=lambda form: peak_entries(footprint(fragments[form], sizes)))
        ranked.remove(chosen)
        ranked.insert(0, chosen)
    return tuple((form, scores[form]) for form in ranked)


def _fragment(
    program: Program, types: Sequence[Type], site: _Site, forms: Sequence[str], form: str
) -> Program:
    """A form on its own: a program that starts from the features.

    It ends where the forms no longer differ. A mix that is not sliced lands on one output, where a
    smaller term is added to it; if outputs may be apart, each slice lands where it does.
    """
    mix, labels = site.mix, types[site.stack[0]].labels
    sources = list(
        dict.fromkeys(
            program.ops[arg].args[0] if isinstance(program.ops[arg], Transpose) else arg
            for arg in site.stack
        )
    )
    if not site.parts:
        landings: list[tuple[int, _Landing]] = [(mix.cols[1] - mix.cols[0], "sum")]
    elif forms[-1].endswith(APART):
        landings = [(part.stop - part.start, part.landing) for part in site.parts]
    else:
        landings = []
    axes = tuple(map(Perm, labels))
    inputs = tuple(
        Tensor((k,), tuple(map(Perm, types[value].labels)), types[value].width)
        for k, value in enumerate(sources)
    )
    # The smaller terms, and what is an output by itself.
    inputs += tuple(Tensor((len(sources) + k,), (), width) for k, (width, _) in enumerate(landings))
    outputs = tuple(Tensor((k,), axes, width) for k, (width, _) in enumerate(landings))
    filled = tuple(matrix for matrix in program.filled if matrix.name == mix.weight)
    names = {mix.weight, *(name for matrix in filled for name in matrix.weights)}
    like = replace(
        program,
        ops=(),
        inputs=inputs,
        outputs=outputs,
        weights=tuple(weight for weight in program.weights if weight[0] in names),
        in_place=site.is_large,
        filled=filled,
    )
    build = Builder(like)
    place = {value: build.input(k) for k, value in enumerate(sources)}
    for arg in site.stack:
        op = program.ops[arg]
        if isinstance(op, Transpose):
            place[arg] = build.transpose(place[op.args[0]], op.axes)
    products = _emit(build, site, _features(program, types, site, place), form)
    if not landings:
        build.add(products[0])
        return build.everything()
    if site.parts and not _is_apart(site, form):
        whole, width = build.add(products[0]), mix.cols[1] - mix.cols[0]
        products = [[build.slice(whole, part.start, part.stop, width)] for part in site.parts]
    for k, (terms, (_, landing)) in enumerate(zip(products, landings, strict=True)):
        if landing == "sum" and labels:
            terms.append(build.broadcast(build.input(len(sources) + k), labels, ()))
        total = build.add(terms)
        if landing == "output":
            build.output(total, k)
    return build.everything()
