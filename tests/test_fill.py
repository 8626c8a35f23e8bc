"""Dense pieces of one signature as blocks of one matrix, zero elsewhere.

In: layers that keep a part of the basis. The oracle of values is the reference program on the NumPy
interpreter, one diagram at a time, which knows no pieces and no matrices.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import symcompile as sc
import symcompile.passes as passes
from symcompile.api import compile_spec
from symcompile.codegen import get_backend
from symcompile.cost.machine import PRESETS, Machine
from symcompile.cost.objective import Objective
from symcompile.cost.work import FILL_LAUNCHES
from symcompile.errors import ProgramError
from symcompile.ir import (
    Block,
    Filled,
    Mix,
    Program,
    diagrams_of,
    parse_program,
    sources_of,
    types_of,
    verify,
)
from symcompile.passes import fill as filling
from symcompile.passes.fill import fill_mixes, plan_fills
from symcompile.specs import transformer
from symcompile.terms import same_tensor
from tests.laws.strategies import Case, cases
from tests.meter import metered
from tests.test_peak import measured_peak

pytestmark = pytest.mark.usefixtures("quick_xla")

DEPTH = 3
CHAIN = {f"layer{k}": {"w": (f"h{k}", f"h{k + 1}"), "b": (f"h{k + 1}",)} for k in range(DEPTH)}
SIZES = {f"h{k}": 4 + k for k in range(DEPTH + 1)}
EAGER = Machine("slow launches", bandwidth=1e12, flops=1e12, launch=1.0)
SLOW = Machine("slow memory", bandwidth=1e3, flops=1e12, launch=0.0)


def causal(output: Any, input: Any, diagram: Any) -> bool:
    return input <= output


def some(seed: int, share: float = 0.6) -> Any:
    """A predicate that keeps a random part, the same whenever it is asked."""

    def keep(output: Any, input: Any, diagram: Any) -> bool:
        return random.Random(f"{seed} {output} {input} {diagram}").random() < share

    return keep


BOUND: dict[str, Any] = {"in_channels": 2, "out_channels": 3, "sizes": SIZES}
CASES: dict[str, Any] = {
    "causal": (CHAIN, {**BOUND, "terms": causal}),
    "random": (CHAIN, {**BOUND, "terms": some(1)}),
    "sums": (CHAIN, {**BOUND, "terms": causal, "reduce": "sum"}),
    "no bias": (CHAIN, {**BOUND, "terms": causal, "bias": False}),
    "pruned by size": ({"w": (0, 0), "v": (0,)}, {**BOUND, "sizes": {0: 2}}),
    "order 3": ({"w": (0, 0, 1)}, {**BOUND, "sizes": {0: 4, 1: 3}, "terms": some(5)}),
}


def compiled(name: str, **options: Any) -> Any:
    spec, given_ = CASES[name]
    return compile_spec(spec, **{"machine": EAGER, **given_, **options})


def layer_of(name: str, **options: Any) -> Any:
    spec, given_ = CASES[name]
    return sc.compile(spec, **{"machine": EAGER, **given_, **options})


def arrays(spec: Any, sizes: Any, batch: tuple[int, ...] = (2,), seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)

    def one(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: one(child) for key, child in node.items()}
        return rng.standard_normal((*batch, *(sizes[label] for label in node), 2))

    return one(spec)


def weights_for(shapes: Any, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def each(visit: Any, *trees: Any) -> Any:
    if isinstance(trees[0], dict):
        return {key: each(visit, *(tree[key] for tree in trees)) for key in trees[0]}
    return visit(*trees)


# -- which pieces are filled --------------------------------------------------------------------


def test_every_part_of_a_basis_can_be_as_few_mixes_as_the_whole():
    spec = transformer(2).spec
    options = {"in_channels": 16, "out_channels": 16, "machine": EAGER}
    whole = sc.plan(spec, **options).planned
    part = sc.plan(spec, **options, terms=causal)
    assert part.planned.mixes == whole.mixes
    assert part.planned.launches <= whole.launches + 2  # zeros, and the weights among them
    assert len(part.signatures) > 3 * whole.mixes  # one mix for every piece


def test_the_choice_follows_the_machine():
    assert compiled("causal").program.filled
    assert not compiled("causal", machine=SLOW).program.filled
    # Only a little is missing: even slow memory reads each feature once, not once per piece.
    wide = {f"x{k}": ("n",) for k in range(4)}
    options = {"in_channels": 2, "out_channels": 2, "sizes": {"n": 1000}, "bias": False}
    almost = {"terms": lambda o, i, d: not (o == ("x0",) and i == ("x3",)), "machine": SLOW}
    assert compile_spec(wide, **options, **almost).program.filled


def test_where_little_is_saved_the_kernels_that_fill_decide():
    spec = {"x": ("n",), "y": ("n",)}
    options = {"in_channels": 1, "out_channels": 1, "bias": False, "machine": EAGER}
    options["terms"] = lambda o, i, d: len(d.blocks) == 1 and i <= o
    plan = sc.plan(spec, **options)
    (fill,) = plan.fills
    assert fill.chosen == fill.scores[0][0] == "pieces"
    assert fill.scores[0][1] > fill.scores[1][1]
    assert "(to put matrices together takes longer than they save)" in plan.explain()


WIDE = {"w": ("n", "n"), "v": ("n", "n"), "u": ("n",)}


@pytest.mark.parametrize("minimize", ["time", "bytes", "flops", "peak"])
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_what_is_chosen_is_no_dearer_than_pieces_for_the_whole_layer(minimize, seed, monkeypatch):
    """In the case of seed 2, by scores of one cover at a time: 849,200 bytes against 661,064."""
    options: dict[str, Any] = {"in_channels": 4, "out_channels": 32, "sizes": {"n": 20}}
    options |= {"terms": some(seed), "minimize": minimize}
    if minimize == "bytes":
        options["machine"] = replace(PRESETS["cpu"], one_pass=False)
    chosen = compile_spec(WIDE, **options).plan
    monkeypatch.setattr(
        passes,
        "plan_fills",
        lambda *args: tuple(plan.one_by_one("forced") for plan in plan_fills(*args)),
    )
    pieces = compile_spec(WIDE, **options).plan
    assert all(fill.chosen == "pieces" for fill in pieces.fills)
    figure = {"time": "seconds"}.get(minimize, minimize)
    assert getattr(chosen.planned, figure) <= getattr(pieces.planned, figure) * (1 + 1e-9)
    if (minimize, seed) == ("bytes", 2):
        assert "(the whole layer costs less without filled matrices)" in chosen.explain()


def test_covers_of_one_kind_are_scored_alike():
    """The key they are told apart by leaves nothing out: each alone scores as by its kind."""
    spec = {**CHAIN, **WIDE, "t": ("n", "h0"), "s": ("h0", "n")}
    sizes = {**SIZES, "n": 4}
    for seed in range(4):
        made = compile_spec(
            spec, in_channels=2, out_channels=2, sizes=sizes, terms=some(seed), keep_stages=True
        )
        program = dict(made.stages)["share_reductions"]
        objective = Objective("time", program.sizes)
        types = types_of(program)
        once = objective.score(0, 0, 0, FILL_LAUNCHES)
        plans = {plan.weights: dict(plan.scores) for plan in plan_fills(program, objective)}
        covers = filling._covers(program, types)
        assert len(covers) >= 5
        for cover in covers:
            pieces, filled = filling._scores(program, types, cover, objective)
            scores = plans[cover.weights]
            assert scores["pieces"] == pytest.approx(pieces, rel=1e-12)
            assert scores["filled"] == pytest.approx(filled - once, rel=1e-9)


def test_filled_matrices_count_as_memory():
    spec = {f"x{k}": ("n",) for k in range(12)}
    options: dict[str, Any] = {"in_channels": 64, "out_channels": 64, "sizes": {"n": 4}}
    options |= {"terms": causal, "bias": False, "machine": EAGER}
    free = compile_spec(spec, **options)
    matrices = sum(rows * cols for rows, cols in (m.shape for m in free.program.filled))
    assert matrices == 2 * 768 * 768
    assert free.plan.planned.peak > 4 * matrices
    tight = compile_spec(spec, **options, memory_limit=100_000)
    assert not tight.program.filled
    assert tight.plan.planned.peak <= 100_000
    assert not compile_spec(spec, **options, minimize="peak").program.filled


def test_a_refusal_tries_no_plan_twice(monkeypatch):
    made = []
    planned = passes._planned
    monkeypatch.setattr(
        passes, "_planned", lambda *args, **given: made.append(given) or planned(*args, **given)
    )
    with pytest.raises(sc.PlanError, match="memory_limit"):
        compile_spec({"w": (0, 0)}, in_channels=1, out_channels=1, memory_limit=10)
    assert len(made) == 4


def test_how_much_is_filled():
    """Three vectors, each written from itself and those before: 6 of 9 blocks."""
    spec = {f"x{k}": ("n",) for k in range(3)}
    options: dict[str, Any] = {"in_channels": 2, "out_channels": 5, "machine": EAGER}
    plan = sc.plan(spec, **options, terms=causal)
    assert [fill.share for fill in plan.fills] == [pytest.approx(6 / 9)] * 2
    assert "67% of it is filled" in plan.explain()


def test_pieces_that_share_nothing_are_left_to_batches():
    assert not compiled("causal", terms=same_tensor).plan.fills


def test_factors_of_low_rank_are_left_alone():
    spec = {f"x{k}": ("n",) for k in range(6)}
    options: dict[str, Any] = {"in_channels": 16, "out_channels": 16, "machine": EAGER}
    options["terms"] = lambda o, i, d: o < ("x3",) or i >= ("x3",)
    assert len(compile_spec(spec, **options).program.filled) == 2
    made = compile_spec(spec, **options, rank=1)
    assert not made.program.filled
    assert all(weight.factors for weight in made.schema.weights if weight.rows)


def test_a_memory_limit_that_only_pieces_meet_is_met():
    spec = {f"x{k}": ("n",) for k in range(6)}
    options: dict[str, Any] = {"in_channels": 2, "out_channels": 3, "sizes": {"n": 1000}}
    options |= {"bias": False, "machine": EAGER}
    options["terms"] = lambda o, i, d: 0 <= int(o[0][1]) - int(i[0][1]) <= 1
    free = compile_spec(spec, **options)
    assert free.program.filled
    tight = free.plan.planned.peak - 1
    bounded = compile_spec(spec, **options, memory_limit=tight)
    assert not bounded.program.filled
    assert bounded.plan.planned.peak <= tight
    assert "(for memory_limit: what is mixed at once is alive at once)" in bounded.plan.explain()
    least = compile_spec(spec, **options, minimize="peak")
    assert not least.program.filled
    assert least.plan.planned.peak <= bounded.plan.planned.peak


def test_the_report_tells_both_forms_and_how_much_is_filled():
    plan = compiled("causal").plan
    told = plan.explain()
    for fill in plan.fills:
        assert fill.chosen == "filled"
        assert fill.scores[0][1] < fill.scores[1][1]
        assert 0 < fill.share < 1
        assert f"as one matrix {fill.share:.0%} of it is filled" in told
    assert plan.to_dict()["fills"][0]["weights"] == plan.fills[0].weights
    assert plan.planned.mixes < len(plan.signatures)


# -- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_meaning_stays_and_the_program_is_well_formed(name):
    stages = dict(compiled(name, keep_stages=True).stages)
    assert stages["fill_mixes"].filled
    assert len({str(sorted(map(str, diagrams_of(p).items()))) for p in stages.values()}) == 1
    for stage in stages.values():
        verify(stage)
        assert parse_program(str(stage)) == stage


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_a_weight_has_one_place(name):
    program = compiled(name).program
    shapes, held = dict(program.weights), Counter()
    for filled in program.filled:
        for block in filled.blocks:
            held.update(
                (block.weight, row, col) for row in range(*block.rows) for col in range(*block.cols)
            )
    assert set(held.values()) == {1}
    for name_ in {name_ for name_, _, _ in held}:
        rows, cols = shapes[name_]
        assert sum(1 for name__, _, _ in held if name__ == name_) == rows * cols


def first_moved(program: Program, **change: Any) -> Program:
    first, *rest = program.filled
    block, *others = first.blocks
    blocks = (replace(block, **change), *others)
    return replace(program, filled=(replace(first, blocks=blocks), *rest))


def test_a_block_in_a_wrong_place_is_found_out():
    """A planted fault: two columns of a block trade places with those of another."""
    program = compiled("causal").program
    first, *rest = program.filled
    place = next(k for k, b in enumerate(first.blocks) if b.cols[1] - b.cols[0] == 6)
    block = first.blocks[place]
    swapped = [
        replace(block, cols=(0, 3), col=block.col + 3),
        replace(block, cols=(3, 6)),
    ]
    blocks = (*first.blocks[:place], *swapped, *first.blocks[place + 1 :])
    wrong = verify(replace(program, filled=(replace(first, blocks=blocks), *rest)))
    assert diagrams_of(wrong) != diagrams_of(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": "none"}, "no matrix of weights"),
        ({"weight": "bias"}, "no matrix of weights"),
        ({"rows": (0, 99)}, "reads outside"),
        ({"cols": (2, 2)}, "reads outside"),
        ({"row": 99}, "lies outside"),
        ({"col": -1}, "lies outside"),
        ({"row": 2, "col": 3, "cols": (0, 9)}, "overlap"),
        ({"rows": (0, 1), "row": 3, "col": 3, "cols": (0, 9)}, "overlap"),
    ],
)
def test_an_ill_formed_matrix_is_refused(change, message):
    program = compiled("causal").program
    with pytest.raises(ProgramError, match=message):
        verify(first_moved(program, **change))


def test_two_matrices_of_one_name_are_refused():
    program = compiled("causal").program
    with pytest.raises(ProgramError, match="one name"):
        verify(replace(program, filled=(*program.filled, program.filled[0])))


def test_a_mix_of_a_matrix_depends_on_all_its_weights():
    program = compiled("causal").program
    names = [name for name, _ in program.weights]
    sources = sources_of(program)
    for number, op in enumerate(program.ops):
        for filled in program.filled:
            if isinstance(op, Mix) and op.weight == filled.name:
                made_of = {name for k, name in enumerate(names) if sources[number] >> k & 1}
                assert made_of == set(filled.weights)


def test_what_a_matrix_says_of_itself():
    blocks = (Block("a", (0, 2), (1, 4), 0, 0), Block("b", (0, 1), (0, 1), 2, 3))
    filled = Filled("m", (3, 4), (*blocks, Block("a", (2, 3), (0, 1), 2, 0)))
    assert filled.weights == ("a", "b")
    assert filled.entries == 6 + 1 + 1
    assert (blocks[0].down, blocks[0].across) == ((0, 2), (0, 3))


def test_filling_twice_changes_nothing():
    program = dict(compiled("causal", keep_stages=True).stages)["fill_mixes"]
    objective = Objective("time", program.sizes, EAGER)
    assert fill_mixes(program, plan_fills(program, objective)) is program


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [(), (2,), (0,), (2, 3)])
def test_values_are_those_of_the_reference(backend: str, name: str, batch: Any) -> None:
    pytest.importorskip(backend)
    spec, options = CASES[name]
    oracle = layer_of(name, backend="numpy", optimize=False)
    layer = layer_of(name, backend=backend)
    assert layer.compiled.program.filled
    weights = weights_for(oracle.compiled.shapes)
    x = arrays(spec, options["sizes"], batch)
    chosen = get_backend(backend)
    with chosen.precision("float64"):
        own = {key: chosen.from_numpy(value) for key, value in weights.items()}
        found = each(chosen.to_numpy, chosen.call(layer, own, each(chosen.from_numpy, x)))
    each(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-11),
        found,
        oracle.apply(weights, x),
    )


@settings(max_examples=40)
@given(cases(max_weights=1_000, max_entries=1_500), st.integers(0, 99))
def test_whatever_can_be_filled_agrees_on_numpy_and_torch(case: Case, seed: int) -> None:
    pytest.importorskip("torch")
    options = {**case.options, "terms": some(seed), "machine": EAGER}
    try:
        compile_spec(case.spec, case.out_spec, **options)
    except sc.OptionError:
        return  # nothing is kept
    plans = (False, "auto")
    sc.check_backends(case.spec, case.out_spec, backends=["numpy", "torch"], plans=plans, **options)


@settings(max_examples=60)
@given(cases(max_weights=1_000, max_entries=1_500), st.integers(0, 99))
def test_filling_never_changes_the_meaning(case: Case, seed: int) -> None:
    options = {**case.options, "terms": some(seed)}
    try:
        made = compile_spec(case.spec, case.out_spec, **options, keep_stages=True, machine=EAGER)
    except sc.OptionError:
        return
    stages = dict(made.stages)
    forced = [replace(plan, chosen="filled") for plan in made.plan.fills]
    filled = verify(fill_mixes(stages["share_reductions"], forced))
    assert len(filled.filled) == len(forced)
    assert diagrams_of(filled) == diagrams_of(stages["lowered"])


def test_nothing_but_what_is_kept_can_be_learned():
    """The weights are those of the pieces: no entry stands for nothing."""
    spec, options = CASES["causal"]
    made, free = compiled("causal"), compile_spec(spec, **{**options, "terms": None})
    channels = 2 * 3
    assert made.plan.weights == channels * (made.plan.diagrams - 6) + 3 * 6
    assert made.plan.weights < free.plan.weights


def test_half_types_stay_half_in_jax():
    jax = pytest.importorskip("jax")
    spec, options = CASES["causal"]
    layer = layer_of("causal", backend="jax", dtype="bfloat16")
    x = each(lambda a: jax.numpy.asarray(a, "bfloat16"), arrays(spec, options["sizes"]))
    y = layer.apply(layer.init(jax.random.key(0)), x)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(y)} == {"bfloat16"}
    # A matrix of another dtype would promote the product: there is none in the program traced.
    traced = str(jax.make_jaxpr(layer.apply)(layer.init(jax.random.key(0)), x))
    products = [line for line in traced.splitlines() if "dot_general" in line]
    assert products
    assert all(":bf16[" in line for line in products)


# -- torch --------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")


def tensors(name: str = "causal", dtype: Any = torch.float32, batch: Any = (2,)) -> Any:
    spec, options = CASES[name]
    return each(lambda a: torch.from_numpy(a).to(dtype), arrays(spec, options["sizes"], batch))


def make(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return layer_of("causal", **options)


def same(found: Any, expected: Any, **tolerance: Any) -> None:
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_the_running_code(name):
    layer = layer_of(name)
    counted, log = metered(layer, tensors(name, batch=(1,)))
    figures = layer.plan.planned
    assert (figures.launches, figures.flops, figures.bytes) == (
        counted.launches,
        counted.flops,
        4 * (counted.read + counted.written),
    ), log


def test_users_see_the_canonical_weights():
    layer, plain = make(seed=3), make(seed=3, optimize=False)
    assert list(layer.state_dict()) == list(plain.state_dict()) == list(layer.compiled.shapes)
    for name, value in layer.state_dict().items():
        same(value, plain.state_dict()[name], rtol=0, atol=0)
        assert value.is_contiguous()
    other = make(seed=4, optimize=False)
    other.load_state_dict(layer.state_dict(), strict=True)
    same(other(tensors()), layer(tensors()))
    assert not list(layer.buffers())


def test_gradients_reach_every_weight_and_match_those_of_the_reference():
    filled, plain = make(dtype="float64"), make(dtype="float64", optimize=False)
    plain.load_state_dict(filled.state_dict())
    for layer in (filled, plain):
        y = layer(tensors(dtype=torch.float64))
        sum((leaf**2).sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
    for name, weight in filled.named_parameters():
        same(weight.grad, dict(plain.named_parameters())[name].grad)
    expected, _ = torch.utils._pytree.tree_flatten(plain(tensors(dtype=torch.float64)))
    found, _ = torch.utils._pytree.tree_flatten(filled(tensors(dtype=torch.float64)))
    same(found, expected)


def test_zeros_stay_zeros_while_a_layer_trains():
    filled, plain = make(dtype="float64"), make(dtype="float64", optimize=False)
    plain.load_state_dict(filled.state_dict())
    for layer in (filled, plain):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            y = layer(tensors(dtype=torch.float64))
            sum((leaf**2).sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
            optimizer.step()
    same(filled(tensors(dtype=torch.float64)), plain(tensors(dtype=torch.float64)))
    y = torch.utils._pytree.tree_leaves(filled(tensors(dtype=torch.float64)))[0]
    moved = tensors(dtype=torch.float64)
    moved["layer2"]["w"] += 1.0  # comes after all of layer0
    same(torch.utils._pytree.tree_leaves(filled(moved))[0], y, rtol=0, atol=0)


def test_weights_are_never_copied_together():
    log: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.stack):
                log.extend(str(part.shape) for part in args[0] if part.ndim == 1)
            return func(*args, **(kwargs or {}))

    def copied(layer: Any) -> bool:
        log.clear()
        with Watch():
            layer(tensors())
        return bool(log)

    layer = make()
    assert not copied(layer)
    assert not copied(layer.double().float())
    layer.mix_h1.data = layer.mix_h1.data.clone()
    assert copied(layer)  # whoever puts other arrays in their place is served all the same


def flat_copies(layer: Any) -> int:
    """How many weights a call copies together."""
    log: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.cat:
                log.extend(1 for part in args[0] if part.ndim == 1)
            return func(*args, **(kwargs or {}))

    with Watch():
        layer(tensors())
    return len(log)


def test_copies_lie_side_by_side_and_pickles_are_small():
    layer = make()
    size = sum(weight.nbytes for weight in layer.parameters())
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(copy.deepcopy(layer)))):
        assert flat_copies(clone) == flat_copies(layer) == 0
        storages = {w.untyped_storage().data_ptr(): w.untyped_storage() for w in clone.parameters()}
        assert sum(storage.nbytes() for storage in storages.values()) == size
    bare, one = pickle.dumps(make(optimize=False)), len(pickle.dumps(torch.zeros(1)))
    assert len(pickle.dumps(layer)) < len(bare) + 30 * one + 3 * size
    same(layer(tensors()), make()(tensors()))  # as it was, wherever its weights lie by now
    assert flat_copies(layer) > 0
    assert flat_copies(layer.to("cpu")) == 0


def test_big_layers_pickle_to_their_size():
    """310 MB for 1.1 MB of weights, were the storage written once for every weight."""
    layer = sc.compile(
        transformer(2).spec, in_channels=8, out_channels=8, terms=causal, machine=EAGER
    )
    assert len(layer.compiled.program.filled) > 10
    plan = len(pickle.dumps(layer.compiled))
    assert len(pickle.dumps(layer)) < plan + 3 * 4 * layer.plan.weights


def test_an_optimizer_and_its_layer_are_pickled_and_copied_as_one():
    layer = make()
    both = (layer, torch.optim.SGD(layer.parameters()))
    for one, optimizer in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert held == {id(weight) for weight in one.parameters()}


def test_weights_stay_shared_with_other_processes():
    for layer in (make(), copy.deepcopy(make())):
        layer.share_memory()
        assert all(weight.is_shared() for weight in layer.parameters())
        pickle.dumps(layer)
        layer.to("cpu")
        assert all(weight.is_shared() for weight in layer.parameters())


def test_a_layer_that_ran_on_meta_can_be_loaded():
    with torch.device("meta"):
        empty = make(seed=2)
        x = each(lambda leaf: leaf.to("meta"), tensors())
        empty(x)
    empty.load_state_dict(make(seed=1).state_dict(), assign=True)
    same(empty(tensors()), make(seed=1)(tensors()))


def test_a_layer_moved_in_inference_mode_trains():
    layer = make()
    with torch.inference_mode():
        layer.to(torch.float64)
        layer.to(torch.float32)
    y = layer(tensors())
    sum(leaf.sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
    assert layer.mix_h1.grad is not None


def test_weights_of_several_dtypes_keep_them():
    layer = make()
    layer.mix_h1.data = layer.mix_h1.data.to(torch.bfloat16)
    layer.to("cpu")
    assert layer.mix_h1.dtype is torch.bfloat16
    assert layer.mix_h2.dtype is torch.float32


def test_the_peak_is_within_a_fifth_of_what_was_measured_at_batch_one():
    spec = {f"x{k}": ("n",) for k in range(12)}
    options: dict[str, Any] = {"in_channels": 64, "out_channels": 64, "sizes": {"n": 4}}
    layer = sc.compile(spec, **options, terms=causal, machine=EAGER, dtype="float32", bias=False)
    assert layer.compiled.program.filled
    measured = measured_peak(layer, spec, {"n": 4}, 64, batch=1)
    assert layer.plan.planned.peak == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("fused", [False, True])
def test_fused_optimizers_take_the_weights(fused):
    layer = make()
    y = layer(tensors())
    sum((leaf**2).sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
    before = layer.mix_h1.clone()
    torch.optim.AdamW(layer.parameters(), fused=fused).step()
    assert not torch.equal(layer.mix_h1, before)
    assert torch.nn.utils.parameters_to_vector(layer.parameters()).numel() == layer.plan.weights


def test_moved_copied_pickled_and_loaded_layers_are_the_same():
    layer = make(seed=1)
    empty = make(seed=2).to("meta")
    empty.load_state_dict(layer.state_dict(), assign=True)
    other = make(seed=2).to("meta").to_empty(device="cpu")
    other.load_state_dict(layer.state_dict())
    with torch.device("meta"):
        made = make(seed=2)
    made.to_empty(device="cpu").load_state_dict(layer.state_dict())
    clones = (empty, other, made, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    for clone in (*clones, layer.double().float()):
        same(clone(tensors()), make(seed=1)(tensors()))
    half = make(seed=1).to(torch.bfloat16)
    y = half(tensors(dtype=torch.bfloat16))
    assert all(leaf.dtype is torch.bfloat16 for leaf in torch.utils._pytree.tree_leaves(y))


def test_transforms_of_torch_see_through():
    layer, x = make(), tensors()
    expected = layer(x)
    same(torch.export.export(layer, (x,)).module()(x), expected)
    same(torch.compile(layer, fullgraph=True)(x), expected)
    one = torch.utils._pytree.tree_map(lambda leaf: leaf[0], x)
    same(torch.func.vmap(layer)(x), expected)
    many = {name: torch.stack([w, 2 * w]) for name, w in layer.named_parameters()}
    y = torch.func.vmap(lambda w: torch.func.functional_call(layer, w, (one,)))(many)
    twice = {name: 2 * w for name, w in layer.named_parameters()}
    for place, weights in enumerate((dict(layer.named_parameters()), twice)):
        same(
            torch.utils._pytree.tree_map(lambda leaf, k=place: leaf[k], y),
            torch.func.functional_call(layer, weights, (one,)),
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x)["layer1"]["w"].dtype is torch.bfloat16


def test_every_weight_can_be_frozen_and_parametrized_by_itself():
    layer = make()
    layer.mix_h1.requires_grad_(False)
    y = layer(tensors())
    sum(leaf.sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
    assert layer.mix_h1.grad is None
    assert layer.mix_h2.grad is not None
    expected = layer(tensors())
    torch.nn.utils.parametrize.register_parametrization(layer, "mix_h1", torch.nn.Identity())
    same(layer(tensors()), expected)
    same(layer.double().float()(tensors()), expected)


def test_mixes_read_the_matrix_and_no_piece_twice():
    program = compiled("causal").program
    poured = {name for filled in program.filled for name in filled.weights}
    read = [op.weight for op in program.ops if isinstance(op, Mix)]
    assert not poured & set(read)
    assert {filled.name for filled in program.filled} <= set(read)
