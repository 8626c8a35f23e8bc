"""Partition diagrams: enumeration, counts and small sizes, against brute force and orbits."""

from __future__ import annotations

import time
from collections import Counter
from itertools import permutations, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symcompile.diagrams import (
    Diagram,
    HalfDiagram,
    basis_size,
    bell,
    bijections,
    census,
    cut,
    glue,
    half_diagrams,
    set_partitions,
    stirling2,
    tight_sizes,
)
from symcompile.spec import label_order

LABELS = [
    (),
    (0,),
    (0, 0),
    (0, 1),
    ("b", "a"),
    (0, 0, 0),
    (1, 0, 1),
    (0, 0, 1, 1),
    (0, 0, 0, 0),
    (2, "x", 2, 0),
]
labels_of = st.lists(st.sampled_from([0, 1, "a"]), max_size=3).map(tuple)


def colourings(axes):
    """Set partitions the slow way: the distinct fibre sets of all maps axes -> axes."""
    return {
        frozenset(
            frozenset(a for a, c in zip(axes, colour, strict=True) if c == value)
            for value in colour
        )
        for colour in product(range(len(axes)), repeat=len(axes))
    }


def joint_partitions(out, into, sizes):
    """Every partition of the joint axes whose blocks have one label and fit the sizes."""
    labels = (*out, *into)
    for blocks in colourings(range(len(labels))):
        kinds = [{labels[axis] for axis in block} for block in blocks]
        if all(len(kind) == 1 for kind in kinds):
            counts = Counter(next(iter(kind)) for kind in kinds)
            if all(count <= sizes.get(label, count) for label, count in counts.items()):
                yield tuple(sorted(tuple(sorted(block)) for block in blocks))


def orbits(labels, sizes):
    """Orbits of index tuples under the symmetric groups of the labels, by walking the group."""
    names = sorted(set(labels), key=str)
    group = list(product(*(permutations(range(sizes[name])) for name in names)))
    left = set(product(*(range(sizes[label]) for label in labels)))
    count = 0
    while left:
        index = left.pop()
        count += 1
        for element in group:
            moved = dict(zip(names, element, strict=True))
            left.discard(tuple(moved[la][i] for la, i in zip(labels, index, strict=True)))
    return count


@pytest.mark.parametrize("count", range(6))
def test_set_partitions_are_those_of_brute_force_each_once(count):
    found = list(set_partitions(range(count)))
    assert len(found) == len(set(found)) == bell(count)
    assert {frozenset(map(frozenset, p)) for p in found} == (
        colourings(range(count)) if count else {frozenset()}
    )


def test_set_partitions_are_in_normal_form_for_any_elements():
    for partition in set_partitions((2, 5, 9, 11)):
        assert all(list(block) == sorted(block) for block in partition)
        assert list(partition) == sorted(partition)


def test_set_partitions_begin_with_one_block_and_end_with_singletons():
    first, *_, last = set_partitions((3, 4, 7))
    assert (first, last) == (((3, 4, 7),), ((3,), (4,), (7,)))


@pytest.mark.parametrize("count", range(8))
def test_stirling2_counts_partitions_by_blocks(count):
    lengths = Counter(map(len, set_partitions(range(count))))
    assert all(stirling2(count, k) == lengths[k] for k in range(count + 2))


def test_stirling2_outside_its_triangle_is_zero():
    assert (stirling2(3, 4), stirling2(3, 0), stirling2(3, -1), stirling2(0, 0)) == (0, 0, 0, 1)


def test_bell_numbers_of_the_literature():
    assert [bell(n) for n in range(11)] == [1, 1, 2, 5, 15, 52, 203, 877, 4140, 21147, 115975]


# -- half-diagrams ----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", LABELS)
def test_half_diagrams_are_partitions_with_every_choice_of_marks(labels):
    found = list(half_diagrams(labels))
    expected = {
        (frozenset(b for b, m in zip(blocks, marks, strict=True) if m), blocks)
        for blocks in map(tuple, joint_partitions(labels, (), {}))
        for marks in product((True, False), repeat=len(blocks))
    }
    assert len(found) == len(set(found))
    assert {
        (frozenset(h.propagating), tuple(sorted(h.propagating + h.closed))) for h in found
    } == expected


@pytest.mark.parametrize("labels", LABELS)
def test_half_diagrams_start_with_the_identity_and_lose_blocks(labels):
    found = list(half_diagrams(labels))
    assert found[0].is_identity
    assert sum(half.is_identity for half in found) == 1
    propagating = [len(half.propagating) for half in found]
    assert propagating == sorted(propagating, reverse=True)
    assert all(half.order == len(labels) for half in found)


def test_propagating_blocks_are_in_canonical_order_by_label_then_first_axis():
    half = next(half_diagrams(("b", 3, "a", 3, -1)))
    assert half.propagating == ((4,), (1,), (3,), (2,), (0,))
    assert half.signature(("b", 3, "a", 3, -1)) == (-1, 3, 3, "a", "b")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_half_diagrams_with_more_blocks_than_the_size_are_left_out(labels, size):
    sizes = dict.fromkeys(labels, size)
    kept = list(half_diagrams(labels, sizes))
    assert kept == [half for half in half_diagrams(labels) if half.fits(labels, sizes)]
    most = [Counter(labels[b[0]] for b in h.propagating + h.closed) for h in kept]
    assert all(count <= size for counts in most for count in counts.values())


def test_a_half_diagram_counts_its_closed_blocks_and_prints():
    half = HalfDiagram(propagating=((0, 2),), closed=((1,), (3,)))
    labels = ("a", "b", "a", "b")
    assert half.closed_counts(labels) == {"b": 2}
    assert not half.is_identity
    assert str(half) == "02|(1)|(3)"
    assert str(HalfDiagram((), ())) == "-"
    assert half.fits(labels, {"b": 2, "z": 1})
    assert not half.fits(labels, {"b": 1})


# -- diagrams ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "count"),
    [((), 1), (("a",), 1), (("a", "a"), 2), (("a", "b"), 1), ((0, 0, 0, 1, 1), 12)],
)
def test_bijections_keep_labels(signature, count):
    found = list(bijections(signature))
    assert found[0] == tuple(range(len(signature)))
    assert len(set(found)) == len(found) == count
    for bijection in found:
        assert tuple(signature[place] for place in bijection) == signature


def all_diagrams(out, into, sizes=None):
    """Diagrams by gluing every pair of half-diagrams of one signature every way."""
    return [
        glue(top, bottom, bijection)
        for top in half_diagrams(out, sizes)
        for bottom in half_diagrams(into, sizes)
        if top.signature(out) == bottom.signature(into)
        for bijection in bijections(top.signature(out))
    ]


@pytest.mark.parametrize(
    ("out", "into"),
    [
        ((), ()),
        ((0,), (0,)),
        ((0, 0), (0, 0)),
        ((0, 1), (1, 0)),
        ((0, "a", 0), ("a", 0)),
        ((), (0, 0, 0)),
    ],
)
def test_gluing_reaches_every_joint_partition_exactly_once(out, into):
    found = all_diagrams(out, into)
    assert len(found) == len(set(found))
    assert {d.blocks for d in found} == set(joint_partitions(out, into, {}))


@given(labels_of, labels_of)
def test_cut_undoes_glue(out, into):
    for top in half_diagrams(out):
        for bottom in half_diagrams(into):
            if top.signature(out) == bottom.signature(into):
                for bijection in bijections(top.signature(out)):
                    diagram = glue(top, bottom, bijection)
                    assert cut(diagram, out, into) == (top, bottom, bijection)


@given(labels_of, labels_of)
def test_glue_undoes_cut(out, into):
    for blocks in joint_partitions(out, into, {}):
        diagram = Diagram(len(out), blocks)
        assert glue(*cut(diagram, out, into)) == diagram


def test_glue_refuses_a_bijection_of_another_length():
    row = HalfDiagram(((0,),), ())
    with pytest.raises(ValueError, match="shorter"):
        glue(row, row, ())


def test_a_diagram_prints_out_axes_left_of_in_axes():
    assert str(Diagram(2, ((0, 2), (1,), (3,)))) == "0<-0|1<-|<-1"
    assert str(Diagram(0, ())) == "-"


# -- counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "count"), [(0, 1), (1, 2), (2, 15), (3, 203), (4, 4140), (6, 4213597)]
)
def test_one_label_gives_bell_numbers(order, count):
    assert basis_size([(0,) * order], [(0,) * order]) == count


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("size", [None, 1, 2, 3])
def test_the_census_counts_what_enumeration_finds(labels, size):
    sizes = {} if size is None else dict.fromkeys(labels, size)
    found: dict = {}
    for half in half_diagrams(labels, sizes):
        through = Counter(half.signature(labels))
        closed = frozenset(half.closed_counts(labels).items())
        found.setdefault(tuple(sorted(through.elements(), key=label_order)), Counter())[closed] += 1
    counted = {
        m: Counter({frozenset(c): n for c, n in closed.items()})
        for m, closed in census([labels], sizes).items()
    }
    assert counted == found


def test_the_census_adds_up_over_tensors_and_watches_only_what_it_is_told_to():
    once, twice = census([(0, 1)]), census([(0, 1), (1, 0)])
    assert {m: {c: 2 * n for c, n in counts.items()} for m, counts in once.items()} == twice
    assert all(set(counts) == {()} for counts in census([(0, 1)], watch=()).values())
    by_signature = {m: sum(c.values()) for m, c in census([(0, 0, 1)], watch=()).items()}
    assert by_signature == {m: sum(c.values()) for m, c in census([(0, 0, 1)]).items()}


@given(
    st.lists(labels_of, min_size=1, max_size=2),
    st.lists(labels_of, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from([0, 1, "a"]), st.integers(1, 7)),
)
def test_basis_size_is_the_number_of_joint_partitions_that_fit(outs, intos, sizes):
    if max(map(len, outs)) + max(map(len, intos)) > 5:
        outs, intos = [out[:2] for out in outs], [into[:3] for into in intos]
    expected = sum(1 for out in outs for into in intos for _ in joint_partitions(out, into, sizes))
    assert basis_size(outs, intos, sizes) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("out", "into"),
    [
        ((0,), (0,)),
        ((0, 0), (0,)),
        ((0, 0), (0, 0)),
        ((), (0, 0, 0)),
        ((0, 1), (1, 0)),
        ((0, 0, 1), (1,)),
    ],
)
def test_basis_size_is_the_dimension_an_orbit_count_gives(out, into, size):
    """The dimension of the equivariant maps is the number of orbits on joint indices."""
    sizes = {0: size, 1: 2}
    assert basis_size([out], [into], sizes) == orbits((*out, *into), sizes)


def test_two_to_two_at_sizes_one_two_three():
    counts = [basis_size([(0, 0)], [(0, 0)], {0: n}) for n in range(1, 6)]
    assert counts == [1, 8, 14, 15, 15]


def test_basis_size_is_additive_over_pairs_of_tensors():
    tensors = [(0, 1), (1,), (1, 2), (2,), ()]
    pairs = sum(basis_size([out], [into]) for out in tensors for into in tensors)
    assert basis_size(tensors, tensors) == pairs


def test_a_basis_of_astronomical_size_is_counted_at_once():
    start = time.process_time()
    count = basis_size([(0,) * 40], [(0,) * 40])
    assert time.process_time() - start < 0.5
    assert count == bell(80)


def test_labels_multiply():
    assert basis_size([(0, 0, 1, 1)], [(0, 0, 1, 1)]) == 15 * 15
    assert basis_size([("a", "b", "c")], [("c", "a", "b")]) == 2**3


def test_half_diagram_counts_follow_the_closed_formula():
    for order in range(6):
        total = sum(
            stirling2(order, blocks) * comb(blocks, through)
            for blocks in range(order + 1)
            for through in range(blocks + 1)
        )
        assert sum(1 for _ in half_diagrams((0,) * order)) == total


@pytest.mark.parametrize(
    ("outs", "intos", "sizes", "tight"),
    [
        ([(0, 0)], [(0, 0)], {0: 4}, {}),
        ([(0, 0)], [(0, 0)], {0: 3}, {0: 3}),
        ([(0,), (0, 0)], [(0,)], {0: 2}, {0: 2}),
        ([(0,), (1,)], [(0,)], {0: 2, 1: 1, "absent": 1}, {}),
        ([], [(0,)], {0: 1}, {}),
    ],
)
def test_tight_sizes_are_those_that_some_diagram_exceeds(outs, intos, sizes, tight):
    assert tight_sizes(outs, intos, sizes) == tight


def test_tensors_of_many_labels_are_counted_and_built_without_enumerating_their_signatures():
    letters = tuple("abcdefghijklmnopqrstuvwxyz")
    assert basis_size([()], [letters]) == 1
    assert basis_size([(x,) for x in letters], [letters]) == 2 * 26
    assert basis_size([letters], [letters]) == 2**26
    assert basis_size([letters * 2], [letters], {"a": 1}) == 5**25
