"""Pass: several mixes of equal size in one batched matmul.

In: a Program and a plan per group of mixes. Out: one in which every group that the plan says is
computed by one `BatchMix`, whatever the signatures, as long as the sizes are equal.

The one thing to know: a mix can only wait for the others if it does not need them. Mixes behind
equally many mixes never need each other, so groups are formed level by level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from symcompile.cost.objective import Objective
from symcompile.cost.work import Accountant, Work, work_of
from symcompile.ir import (
    Add,
    BatchMix,
    Builder,
    Concat,
    Mix,
    Output,
    Program,
    Tensor,
    Type,
    accumulations,
    by_level,
    lazy_axes,
    levels_of,
    readers_of,
    sources_of,
    types_of,
)
from symcompile.planner.decisions import BatchPlan
from symcompile.spec import Perm

__all__ = ["FORMS", "batch_mixes", "plan_batches"]

FORMS = ("separate", "batched")

_ROUNDING = 1e-12
"""Scores that differ by less, relative, are the same sum in another order."""


def plan_batches(program: Program, objective: Objective) -> tuple[BatchPlan, ...]:
    """For every group of mixes that could be one batched matmul, whether that costs less."""
    groups = _groups(program)
    if not groups:
        return ()
    types, now = types_of(program), Accountant(program, one_pass=objective.one_pass)
    plans = []
    taken: list[_Group] = []
    batched: dict[int, int] = {}
    for group in groups:
        behind = next((before for before in taken if _makes(before, group)), None)
        together = batched | _together(group, sources_of(program, batched))
        then = now.once(together)
        around = list(_elsewhere(program, now, then))
        before = [now.work_at(number) for number in (*_one_by_one(program, group), *around)]
        after = [_at_once(program, types, group, behind), *map(then.work_at, around)]
        scores = (objective.total(works, program) for works in (before, after))
        plans.append(_plan(group, *scores))
        if plans[-1].chosen == "batched":
            taken.append(group)
            batched, now = together, then
    return tuple(plans)


def _together(group: _Group, sources: Sequence[int]) -> dict[int, int]:
    """What each mix of a batch is made from: all that any of them is."""
    union = 0
    for number in group.mixes:
        union |= sources[number]
    return dict.fromkeys(group.mixes, union)


def _makes(behind: _Group, group: _Group) -> bool:
    """True if one group makes just what another mixes, in that order."""
    return group.features == tuple((mix,) for mix in behind.mixes)


def batch_mixes(program: Program, plans: Iterable[BatchPlan]) -> Program:
    """Compute every group that is planned as "batched" by one op."""
    batched = {plan.weights for plan in plans if plan.chosen == "batched"}
    if not batched:
        return program
    groups = [group for group in _groups(program) if group.weights in batched]
    last = {group.mixes[-1]: group for group in groups}
    member = {number for group in groups for number in group.mixes}
    build = Builder(program)
    place: dict[int, int] = {}
    for number in by_level(program):
        op = program.ops[number]
        if number in last:
            _emit_batch(build, last[number], place)
        elif number not in member:
            place[number] = build.emit(op.renumbered(place))
    return build.program()


@dataclass(frozen=True, slots=True)
class _Group:
    """Mixes of equal size.

    Attributes:
        mixes: their numbers.
        weights: the weight of each.
        features: what each mixes: the parts of its stack, or the one thing it reads.
    """

    mixes: tuple[int, ...]
    weights: tuple[str, ...]
    features: tuple[tuple[int, ...], ...]


def _groups(program: Program) -> list[_Group]:
    """Mixes of whole matrices, by level and size, in groups of two and more.

    A mix that a large sum is accumulated into keeps a product of its own. So does one that is an
    output by itself: it would have to be copied out of the batch. Filled matrices are put together
    for one mix each.
    """
    types, levels, shapes = types_of(program), levels_of(program), dict(program.weights)
    sizes = dict(program.sizes)
    alike: dict[object, dict[int, Mix]] = {}
    for number, op in enumerate(program.ops):
        if isinstance(op, Mix) and types[number].batched and op.weight in shapes:
            known = tuple(sizes.get(label) or repr(label) for label in types[number].labels)
            key = (levels[number], known, shapes[op.weight])
            alike.setdefault(key, {})[number] = op
    alike = {key: mixes for key, mixes in alike.items() if len(mixes) > 1}
    if not alike:
        return []
    lazy, uses = lazy_axes(program), Counter(_weights_used(program))
    readers = readers_of(program)
    own = {accumulation.base for accumulation in accumulations(program).values()}
    own |= {op.args[0] for op in program.ops if isinstance(op, Output)}
    groups = []
    for mixes in alike.values():
        members = []
        for number, op in mixes.items():
            whole = (op.rows, op.cols) == tuple((0, side) for side in shapes[op.weight])
            stack = program.ops[op.args[0]]
            alone = isinstance(stack, Concat) and len(readers[op.args[0]]) == 1
            features = stack.args if alone else op.args
            if (
                whole
                and uses[op.weight] == 1
                and number not in own
                and not any(map(lazy.__getitem__, features))
            ):
                members.append((number, op.weight, features))
        if len(members) > 1:
            groups.append(_Group(*zip(*members, strict=True)))
    return sorted(groups, key=lambda group: levels[group.mixes[0]])


def _weights_used(program: Program) -> Iterator[str]:
    for op in program.ops:
        if isinstance(op, Mix):
            yield op.weight
        elif isinstance(op, BatchMix):
            yield from op.weights


def _emit_batch(build: Builder, group: _Group, place: dict[int, int]) -> None:
    args = [place[feature] for features in group.features for feature in features]
    batch = build.batch_mix(args, group.weights)
    for member, number in enumerate(group.mixes):
        place[number] = build.pick(batch, member)


def _plan(group: _Group, separate: float, batched: float) -> BatchPlan:
    scores = ("separate", separate), ("batched", batched)
    if batched < separate * (1 - _ROUNDING):
        return BatchPlan(group.weights, "batched", scores[::-1])
    return BatchPlan(group.weights, "separate", scores)


def _one_by_one(program: Program, group: _Group) -> Iterator[int]:
    """The ops that a batch takes the place of: the mixes, and the stacks that they alone read."""
    for number, features in zip(group.mixes, group.features, strict=True):
        yield number
        if program.ops[number].args != features:
            yield program.ops[number].args[0]


def _elsewhere(program: Program, now: Accountant, then: Accountant) -> Iterator[int]:
    """The sums and outputs that are written in another way once a group is batched.

    All of a batch depends on all that it mixes, and none of it has an array of its own. So sums in
    place need fewer anchors, or more, and outputs may have to be copied.
    """
    for number, op in enumerate(program.ops):
        if isinstance(op, Add):
            if now.owned.sums[number] != then.owned.sums[number]:
                yield number
        elif isinstance(op, Output) and (op.args[0] in now.owned.shared) != (
            op.args[0] in then.owned.shared
        ):
            yield number


def _at_once(program: Program, types: Sequence[Type], group: _Group, behind: _Group | None) -> Work:
    """The work of a batch.

    Args:
        behind: the batched group that makes just what this one mixes, in that order. Its results
            lie as they are needed.
    """
    start = behind or group
    sources = list(dict.fromkeys(k for features in start.features for k in features))
    inputs = tuple(
        Tensor((k,), tuple(map(Perm, types[value].labels)), types[value].width)
        for k, value in enumerate(sources)
    )
    names = {*group.weights, *start.weights}
    weights = tuple(weight for weight in program.weights if weight[0] in names)
    build = Builder(replace(program, ops=(), inputs=inputs, outputs=(), weights=weights, filled=()))
    place = {value: build.input(k) for k, value in enumerate(sources)}
    if behind:
        _emit_batch(build, behind, place)
    _emit_batch(build, group, place)
    fragment = build.everything()
    batch = max(k for k, op in enumerate(fragment.ops) if isinstance(op, BatchMix))
    return work_of(fragment)[batch]
