"""Mixes of equal size in one batched matmul, and where their weights are kept.

In: chains of layers of equal sizes, where every signature comes in many equal copies. The oracle of
values is the reference program on the NumPy interpreter, which knows no batches.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import symcompile as sc
from symcompile.api import compile_spec
from symcompile.codegen import get_backend
from symcompile.cost.machine import Machine
from symcompile.cost.objective import MINIMIZE, Objective
from symcompile.cost.work import work_of
from symcompile.errors import ProgramError
from symcompile.ir import BatchMix, Mix, Pick, Program, diagrams_of, verify
from symcompile.passes.batch import batch_mixes, plan_batches
from symcompile.terms import same_tensor
from tests.laws.strategies import Case, cases
from tests.meter import metered
from tests.test_peak import measured_peak

pytestmark = pytest.mark.usefixtures("quick_xla")

DEPTH = 5
CHAIN = {f"layer{k}": {"w": (f"h{k}", f"h{k + 1}"), "b": (f"h{k + 1}",)} for k in range(DEPTH)}
SIZES = {f"h{k}": 4 for k in range(DEPTH + 1)}
CHANNELS = {"in_channels": 2, "out_channels": 3}
BOUND = {**CHANNELS, "sizes": SIZES}


def kinds(program: Program, kind: type) -> list[Any]:
    return [op for op in program.ops if isinstance(op, kind)]


def arrays(seed: int = 0, batch: tuple[int, ...] = (2,)) -> Any:
    rng = np.random.default_rng(seed)
    return {
        name: {
            "w": rng.standard_normal((*batch, 4, 4, 2)),
            "b": rng.standard_normal((*batch, 4, 2)),
        }
        for name in CHAIN
    }


def weights_for(shapes: Any, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


# -- which mixes are batched ---------------------------------------------------------------------


def test_mixes_of_different_signatures_and_equal_sizes_become_one():
    program = compile_spec(CHAIN, **BOUND).program
    (batch,) = kinds(program, BatchMix)
    # h0 and h5 end the chain: they meet fewer features.
    assert batch.weights == ("mix_h1", "mix_h2", "mix_h3", "mix_h4")
    assert len(kinds(program, Pick)) == 4


def test_sizes_that_may_differ_are_not_batched():
    assert not kinds(compile_spec(CHAIN, **CHANNELS).program, BatchMix)
    sizes = {label: 4 + k for k, label in enumerate(SIZES)}
    assert not kinds(compile_spec(CHAIN, **CHANNELS, sizes=sizes).program, BatchMix)


def test_equal_signatures_are_batched_at_any_size():
    program = compile_spec(CHAIN, **CHANNELS, terms=same_tensor).program
    assert max(len(op.weights) for op in kinds(program, BatchMix)) == 2 * DEPTH
    assert sum(len(op.weights) for op in kinds(program, BatchMix)) > len(kinds(program, Mix))


def test_both_factors_of_low_rank_are_batched_and_nothing_is_brought_together_between():
    compiled = compile_spec(CHAIN, **BOUND, rank=1)
    first, second = kinds(compiled.program, BatchMix)
    assert all(name.endswith("_in") for name in first.weights)
    assert all(name.endswith("_out") for name in second.weights)
    assert all(isinstance(compiled.program.ops[arg], Pick) for arg in second.args)
    source = sc.compile(CHAIN, **BOUND, rank=1).source
    back = source[source.index("def _gradients") : source.index("class _Layer(")]
    assert back.count("torch.bmm") == 4  # two products, and the gradients of two stacks
    source = source[source.index("def _layer") : source.index("def _gradients")]
    assert source.count("torch.bmm") == 2
    behind = next(line for line in source.splitlines() if "stack_1)" in line)
    assert "cat" not in behind


def test_a_product_that_a_large_sum_is_accumulated_into_is_left_alone():
    program = compile_spec(CHAIN, **BOUND).program
    batched = {name for op in kinds(program, BatchMix) for name in op.weights}
    assert not {f"mix_h{k}_h{k + 1}" for k in range(DEPTH)} & batched


def test_the_choice_follows_the_machine():
    slow = Machine("slow memory", bandwidth=1e6, flops=1e12, launch=0.0)
    assert not kinds(compile_spec(CHAIN, **BOUND, machine=slow, rank=1).program, BatchMix)
    fast = Machine("slow launches", bandwidth=1e12, flops=1e12, launch=1.0)
    assert len(kinds(compile_spec(CHAIN, **BOUND, machine=fast, rank=1).program, BatchMix)) == 2


def test_a_memory_limit_that_only_separate_mixes_meet_is_met():
    spec = {f"x{k}": ("n",) for k in range(6)}
    options = {**CHANNELS, "sizes": {"n": 1000}, "terms": same_tensor, "bias": False}
    free = compile_spec(spec, **options)
    assert kinds(free.program, BatchMix)
    tight = free.plan.planned.peak - 1
    bounded = compile_spec(spec, **options, memory_limit=tight)
    assert not kinds(bounded.program, BatchMix)
    assert bounded.plan.planned.peak <= tight
    for given_up, planned in zip(bounded.plan.batches, free.plan.batches, strict=True):
        assert given_up.chosen == given_up.scores[0][0] == "separate"
        assert dict(given_up.scores) == dict(planned.scores)
        assert bool(given_up.reason) == (planned.chosen == "batched")
    why = "(for memory_limit: what is mixed at once is alive at once); else batched"
    assert why in bounded.plan.explain()
    assert "memory_limit" not in free.plan.explain()


# -- what a batch is scored at ---------------------------------------------------------------------


def chain(sizes: tuple[int, ...], *, biases: bool = True) -> dict[str, Any]:
    """Spec and sizes of a chain of layers."""
    spec = {
        f"layer{k}": {"w": (f"h{k}", f"h{k + 1}")} | ({"b": (f"h{k + 1}",)} if biases else {})
        for k in range(len(sizes) - 1)
    }
    return {"spec": spec, "sizes": {f"h{k}": size for k, size in enumerate(sizes)}}


CHAINS = [
    {**chain((4,) * 6), **CHANNELS},
    {**chain((8,) * 6), "in_channels": 1, "out_channels": 16, "machine": "a100"},
    {**chain((8, 32, 16, 16, 8, 16)), "in_channels": 2, "out_channels": 16},
    {**chain((2,) * 4, biases=False), "in_channels": 16, "out_channels": 8, "machine": "h100"},
    {**chain((4, 8, 8, 8, 4, 4, 8)), "in_channels": 2, "out_channels": 8, "machine": "h100"},
    {**chain((4,) * 3), "in_channels": 16, "out_channels": 16, "terms": same_tensor},
    {**chain((8,) * 4), "in_channels": 1, "out_channels": 16, "terms": same_tensor},
    {**chain((2, 4, 4, 4, 8, 8)), "in_channels": 1, "out_channels": 8, "rank": 1},
    {**chain((4,) * 5), "in_channels": 8, "out_channels": 8, "machine": "a100", "rank": 1},
    {**chain((4, 2, 4, 2, 2, 2, 2), biases=False), "in_channels": 2, "out_channels": 1},
    {**chain((2, 16, 8, 8, 2, 8)), "in_channels": 4, "out_channels": 1, "reduce": "sum"},
]


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("kind", ["bytes", "flops"])
def test_what_is_minimized_is_no_smaller_when_something_else_is(kind: str, case: Any) -> None:
    figures = {m: getattr(sc.plan(**case, minimize=m).planned, kind) for m in MINIMIZE}
    assert figures[kind] == min(figures.values()), figures


@pytest.mark.parametrize("case", CHAINS)
@pytest.mark.parametrize("minimize", MINIMIZE)
def test_scores_differ_by_what_whole_programs_differ_by(minimize: Any, case: Any) -> None:
    program = dict(compile_spec(**case, keep_stages=True).stages)["sum_in_place"]
    objective = Objective(minimize, program.sizes)
    plans = plan_batches(program, objective)
    assert plans
    for place, plan in enumerate(plans):
        decided = [replace(later, chosen="separate") for later in plans[place + 1 :]]
        scores = dict(plan.scores)
        whole = {}
        for form in scores:
            forms = [*plans[:place], replace(plan, chosen=form), *decided]
            made = batch_mixes(program, forms)
            whole[form] = objective.total(work_of(made), made)
        expected = whole["batched"] - whole["separate"]
        found = scores["batched"] - scores["separate"]
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9 * whole["separate"])


# -- the op --------------------------------------------------------------------------------------


def forced(program: Program) -> Program:
    plans = plan_batches(program, Objective("time", program.sizes))
    return batch_mixes(program, [replace(plan, chosen="batched") for plan in plans])


def test_the_meaning_stays():
    for options in ({}, {"rank": 1}, {"terms": same_tensor}):
        stages = dict(compile_spec(CHAIN, **BOUND, **options, keep_stages=True).stages)
        assert diagrams_of(stages["batch_mixes"]) == diagrams_of(stages["sum_in_place"])


def test_batching_twice_changes_nothing():
    program = compile_spec(CHAIN, **BOUND).program
    assert forced(program) is program


def swapped(program: Program) -> Program:
    """A planted fault: two picks of a batch trade places."""
    ops = list(program.ops)
    first, second = [number for number, op in enumerate(ops) if isinstance(op, Pick)][:2]
    for number, other in ((first, second), (second, first)):
        ops[number] = replace(ops[number], member=program.ops[other].member)
    return replace(program, ops=tuple(ops))


def test_picks_that_trade_places_are_found_out():
    program = compile_spec(CHAIN, **CHANNELS, terms=same_tensor).program
    assert diagrams_of(swapped(program)) != diagrams_of(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda op: replace(op, weights=op.weights[:-1]), "groups of"),
        (lambda op: replace(op, weights=(*op.weights[:-1], "bias")), "differ in shape"),
        (lambda op: replace(op, weights=(*op.weights[:-1], "none")), "no weight"),
        (lambda op: replace(op, weights=(op.weights[0], *op.weights[:-1])), "repeat"),
        (lambda op: replace(op, args=op.args[:-1]), "groups of"),
    ],
)
def test_an_ill_formed_batch_is_refused(change: Any, message: str) -> None:
    program = compile_spec(CHAIN, **BOUND).program
    ops = tuple(change(op) if isinstance(op, BatchMix) else op for op in program.ops)
    with pytest.raises(ProgramError, match=message):
        verify(replace(program, ops=ops))


def test_sizes_must_be_known_to_be_equal():
    program = compile_spec(CHAIN, **BOUND).program
    with pytest.raises(ProgramError, match="differ in size"):
        verify(replace(program, sizes=()))


def test_only_a_pick_reads_a_batch():
    program = compile_spec(CHAIN, **BOUND).program
    number = next(k for k, op in enumerate(program.ops) if isinstance(op, Pick))
    for other in (Pick((0,), 0), Mix(program.ops[number].args, "mix_h1", (0, 12), (0, 9))):
        ops = (*program.ops[:number], other, *program.ops[number + 1 :])
        with pytest.raises(ProgramError, match="pick"):
            verify(replace(program, ops=ops))
    ops = (*program.ops[:number], replace(program.ops[number], member=4))
    with pytest.raises(ProgramError, match="no result 4"):
        verify(replace(program, ops=ops))


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"terms": same_tensor}, {"reduce": "sum"}])
@pytest.mark.parametrize("batch", [(), (2,), (0,), (2, 3)])
def test_values_are_those_of_the_reference(backend: str, options: Any, batch: Any) -> None:
    pytest.importorskip(backend)
    oracle = sc.compile(CHAIN, **BOUND, **options, backend="numpy", optimize=False)
    layer = sc.compile(CHAIN, **BOUND, **options, backend=backend)
    assert kinds(layer.compiled.program, BatchMix)
    weights, x = weights_for(oracle.compiled.shapes), arrays(batch=batch)
    chosen = get_backend(backend)
    with chosen.precision("float64"):
        own = {name: chosen.from_numpy(value) for name, value in weights.items()}
        inputs = {
            name: {key: chosen.from_numpy(value) for key, value in leaf.items()}
            for name, leaf in x.items()
        }
        y = chosen.call(layer, own, inputs)
        found = {
            name: {key: chosen.to_numpy(value) for key, value in leaf.items()}
            for name, leaf in y.items()
        }
    expected = oracle.apply(weights, x)
    for name, leaf in expected.items():
        for key, value in leaf.items():
            np.testing.assert_allclose(found[name][key], value, rtol=0, atol=1e-11)


@settings(max_examples=40)
@given(cases(max_weights=1_000, max_entries=1_500))
def test_whatever_can_be_batched_agrees_on_numpy_and_torch(case: Case) -> None:
    pytest.importorskip("torch")
    eager = Machine("slow launches", bandwidth=1e12, flops=1e12, launch=1.0)
    sc.check_backends(
        case.spec,
        case.out_spec,
        backends=["numpy", "torch"],
        plans=(False, "auto"),
        batch_shapes=((2,) * (case.seed % 3),),
        seed=case.seed,
        machine=eager,
        terms=same_tensor if case.out_spec is None and case.seed % 2 else None,
        **case.options,
    )


# -- torch: stacked weights behind the canonical names ---------------------------------------------

torch = pytest.importorskip("torch")


def make(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return sc.compile(CHAIN, **BOUND, **options)


def tensors(dtype: Any = torch.float32) -> Any:
    return torch.utils._pytree.tree_map(lambda a: torch.from_numpy(a).to(dtype), arrays())


def same(found: Any, expected: Any, **tolerance: Any) -> None:
    torch.testing.assert_close(found, expected, **tolerance)


def test_no_forward_brings_weights_together():
    joined: list[int] = []

    def weights_of(layer: Any) -> set[int]:
        return {weight.data_ptr() for weight in layer.parameters()}

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.stack):
                joined.extend(part.data_ptr() for part in args[0])
            return func(*args, **(kwargs or {}))

    def brought_together(layer: Any) -> bool:
        joined.clear()
        with Watch():
            layer(tensors())
        assert joined
        return bool(weights_of(layer) & set(joined))

    layer = make()
    assert not brought_together(layer)
    with torch.no_grad():
        assert not brought_together(layer)
    assert not brought_together(layer.double().float())  # laid out again where it is moved
    # Whoever puts other arrays in their place is served all the same: then they are stacked.
    layer.mix_h2.data = layer.mix_h2.data.clone()
    assert brought_together(layer)


def test_users_see_the_canonical_weights():
    layer, plain = make(), make(optimize=False)
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    assert shapes == dict(layer.compiled.shapes)
    assert list(layer.state_dict()) == list(plain.state_dict()) == list(shapes)


def test_weights_are_drawn_alike_under_every_plan():
    batched, plain = make(seed=3), make(seed=3, optimize=False)
    for name, value in batched.state_dict().items():
        same(value, plain.state_dict()[name], rtol=0, atol=0)


def test_checkpoints_go_to_and_from_other_plans():
    batched, plain = make(seed=1), make(seed=2, optimize=False)
    for source, target in ((batched, plain), (plain, batched)):
        target.load_state_dict(source.state_dict(), strict=True)
        same(target(tensors()), source(tensors()))
    net = torch.nn.Sequential(make(seed=4))
    net.load_state_dict({f"0.{name}": value for name, value in plain.state_dict().items()})
    same(net(tensors()), plain(tensors()))
    assert list(net.state_dict()) == [f"0.{name}" for name in plain.state_dict()]


def test_a_state_dict_keeps_its_values_when_loaded_only_in_part():
    layer, state = make(seed=1), make(seed=2).state_dict()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    given = {name: state[name] for name in ("mix_h2", "mix_scalar")}
    missing, unexpected = layer.load_state_dict(given, strict=False)
    assert set(missing) == set(state) - set(given)
    assert not unexpected
    for name, value in layer.state_dict().items():
        same(value, given.get(name, before[name]))


def test_a_state_dict_that_does_not_fit_is_refused_by_canonical_name():
    state = make().state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*mix_h2"):
        make().load_state_dict({name: v for name, v in state.items() if name != "mix_h2"})
    with pytest.raises(RuntimeError, match="size mismatch for mix_h2"):
        make().load_state_dict({**state, "mix_h2": state["mix_h2"][:2]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mix_h9"):
        make().load_state_dict({**state, "mix_h9": state["mix_h2"]})


def test_a_weight_changed_between_forward_and_backward_is_noticed():
    layer = make()
    x = torch.utils._pytree.tree_map(lambda leaf: leaf.requires_grad_(), tensors())
    y = layer(x)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified"):
        sum(leaf.sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()


def test_weights_are_given_by_their_own_names():
    one, other = make(1), make(2)
    for weights in (other.state_dict(), dict(other.named_parameters())):
        same(torch.func.functional_call(one, weights, (tensors(),)), other(tensors()))


def test_every_weight_can_be_frozen_and_parametrized_by_itself():
    layer = make()
    layer.mix_h2.requires_grad_(False)
    sum(leaf.sum() for leaf in torch.utils._pytree.tree_leaves(layer(tensors()))).backward()
    assert layer.mix_h2.grad is None
    assert layer.mix_h1.grad is not None
    expected = layer(tensors())
    torch.nn.utils.parametrize.register_parametrization(layer, "mix_h1", torch.nn.Identity())
    layer.scale = torch.nn.Parameter(torch.ones(1))
    same(layer(tensors()), expected)
    assert {"scale", "parametrizations.mix_h1.original"} <= set(layer.state_dict())


def test_a_meta_layer_is_filled_shard_by_shard():
    state, empty = make(1).state_dict(), make(2).to("meta")
    names = list(state)
    for part in (names[:4], names[4:]):  # mix_h1 and mix_h2 come first, mix_h3 and mix_h4 then
        empty.load_state_dict({name: state[name] for name in part}, strict=False, assign=True)
    same(empty(tensors()), make(1)(tensors()))


def test_the_state_of_an_optimizer_goes_to_another_plan():
    batched, plain = make(1), make(1, optimize=False)
    state = torch.optim.Adam(batched.parameters()).state_dict()
    torch.optim.Adam(plain.parameters()).load_state_dict(state)


def test_meta_layers_are_filled_by_assignment():
    layer, empty = make(), make().to("meta")
    assert all(weight.is_meta for weight in empty.state_dict().values())
    empty.load_state_dict(layer.state_dict(), assign=True)
    same(empty(tensors()), layer(tensors()))
    state = {name: v for name, v in layer.state_dict().items() if name != "mix_h2"}
    empty = make().to("meta")
    with pytest.raises(RuntimeError, match=r"Missing key.*mix_h2"):
        empty.load_state_dict(state, assign=True)


def test_saved_pickled_and_copied_layers_are_the_same(tmp_path: Any) -> None:
    layer = make(seed=1)
    file = sc.save_weights(layer, tmp_path / "weights")
    other = make(seed=2, optimize=False)
    other.load_state_dict(sc.load_weights(file, "torch"))
    same(other(tensors()), layer(tensors()))
    stream = io.BytesIO()
    torch.save(layer.state_dict(), stream)
    stream.seek(0)
    other = make(seed=3)
    other.load_state_dict(torch.load(stream, weights_only=True))
    for clone in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        same(clone(tensors()), layer(tensors()))


def test_gradients_reach_every_weight_and_match_those_of_the_reference():
    batched, plain = make(dtype="float64"), make(dtype="float64", optimize=False)
    plain.load_state_dict(batched.state_dict())
    for layer in (batched, plain):
        y = layer(tensors(torch.float64))
        sum((leaf**2).sum() for leaf in torch.utils._pytree.tree_leaves(y)).backward()
    for name, weight in batched.named_parameters():
        same(weight.grad, dict(plain.named_parameters())[name].grad)


FIGURES = [{}, {"rank": 1}, {"terms": same_tensor}, {"reduce": "sum"}, {"bias": False}]


@pytest.mark.parametrize("options", FIGURES)
def test_figures_are_those_of_the_running_code(options: Any) -> None:
    layer = make(**options)
    assert kinds(layer.compiled.program, BatchMix)
    one = torch.utils._pytree.tree_map(lambda leaf: leaf[:1], tensors())
    counted, log = metered(layer, one)
    figures = layer.plan.planned
    assert (figures.launches, figures.flops, figures.bytes) == (
        counted.launches,
        counted.flops,
        4 * (counted.read + counted.written),
    ), log


@pytest.mark.parametrize("options", FIGURES)
def test_the_peak_is_within_a_fifth_of_what_was_measured(options: Any) -> None:
    sizes = dict.fromkeys(SIZES, 16)
    layer = sc.compile(CHAIN, **CHANNELS, sizes=sizes, **options, dtype="float32")
    assert kinds(layer.compiled.program, BatchMix)
    measured = measured_peak(layer, CHAIN, sizes, CHANNELS["in_channels"])
    assert layer.plan.planned.peak == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("options", [{}, {"rank": 1}])
def test_transforms_of_torch_see_through(options: Any) -> None:
    layer = make(**options)
    x = tensors()
    expected = layer(x)
    same(torch.export.export(layer, (x,)).module()(x), expected)
    same(torch.compile(layer, fullgraph=True)(x), expected)
    one = torch.utils._pytree.tree_map(lambda leaf: leaf[0], x)
    same(torch.func.vmap(layer)(x), expected)
    many = {name: torch.stack([w, 2 * w]) for name, w in layer.named_parameters()}
    y = torch.func.vmap(lambda w: torch.func.functional_call(layer, w, (one,)))(many)
    same(torch.utils._pytree.tree_map(lambda leaf: leaf[0], y), layer(one))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x)["layer1"]["w"].dtype is torch.bfloat16


def test_outputs_may_be_changed_in_place():
    layer = sc.compile(
        {f"x{k}": ("n",) for k in range(4)}, **CHANNELS, terms=same_tensor, bias=False
    )
    x = {f"x{k}": torch.randn(5, 2) for k in range(4)}
    y = layer(x)
    before = {name: value.clone() for name, value in y.items()}
    y["x0"] += 1
    for name in ("x1", "x2", "x3"):
        same(y[name], before[name])
