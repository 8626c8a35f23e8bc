"""`check_symmetry` passes true symmetries, rejects planted faults, and says what it cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symcompile as sc

SPEC = {"in": (None, "h"), "bias": ("h",), "out": ("h", None)}


def network(seed: int = 0, dtype: Any = np.float64) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(seed)
    shapes = {"in": (3, 6), "bias": (6,), "out": (6, 2)}
    params = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return params, rng.standard_normal((5, 3)).astype(dtype)


def model(params: Any, x: Any) -> Any:
    return np.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def test_a_symmetry_passes_and_the_figures_are_told() -> None:
    params, x = network()
    report = sc.check_symmetry(model, params, SPEC, x)
    assert 0 < report.max_error <= 1e-14
    assert report.scale == np.abs(model(params, x)).max()
    assert (report.dtype, report.trials, report.tolerance) == ("float64", 3, 1e-10)
    assert (report.permuted, report.unnoticed, report.unmoved) == (("h",), (), ())
    assert report.conclusive
    assert str(report).startswith("symmetric: outputs change by ")
    assert "says nothing" not in str(report)


@pytest.mark.parametrize(
    "wrong",
    [
        {**SPEC, "bias": (None,)},
        {**SPEC, "out": (None, None)},
        {**SPEC, "out": ("other", None)},
        {**SPEC, "out": ("h", "classes")},
        {**SPEC, "in": ("features", "h")},
        {**SPEC, "bias": ((sc.Fixed(2), "half"),)},
    ],
    ids=["bias", "out", "label", "outputs", "inputs", "composite"],
)
def test_a_wrong_spec_is_rejected_with_the_label(wrong: Any) -> None:
    params, x = network()
    with pytest.raises(sc.CheckError, match=r"not a symmetry: permuting the label '.*' alone"):
        sc.check_symmetry(model, params, wrong, x)


def test_the_labels_are_named_with_their_change_and_their_places() -> None:
    params, x = network()
    with pytest.raises(sc.CheckError) as caught:
        sc.check_symmetry(model, params, {**SPEC, "in": ("features", "h")}, x)
    text = str(caught.value)
    assert "'features' alone changes y by" in text
    assert "'h' alone" not in text
    assert "'features' stands at ['in']" in text


def test_labels_of_size_two_do_not_hide_behind_each_other() -> None:
    """There is one swap of two things, so all labels permuted at once would pass for one label."""
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(3, 2)), "bias": rng.normal(size=2), "out": np.eye(2)}
    wrong = {"in": (None, "a"), "bias": ("b",), "out": ("c", None)}
    with pytest.raises(sc.CheckError, match=r"label 'a' alone|label 'b' alone|label 'c' alone"):
        sc.check_symmetry(model, params, wrong, rng.normal(size=(4, 3)))


def test_inputs_and_outputs_are_permuted_along() -> None:
    params, x = network()
    spec = {"in": ("x", "h"), "bias": ("h",), "out": ("h", "y")}
    report = sc.check_symmetry(model, params, spec, x, in_spec=("x",), out_spec=("y",))
    assert report.permuted == ("h", "x", "y")
    assert report.conclusive
    with pytest.raises(sc.CheckError, match="label 'y' alone"):
        sc.check_symmetry(model, params, spec, x, in_spec=("x",))
    with pytest.raises(sc.SpecError, match="inputs: the label 'z' is on no parameter"):
        sc.check_symmetry(model, params, spec, x, in_spec=("z",))
    with pytest.raises(sc.ShapeError, match=r"inputs has shape .* at least 3 axes"):
        sc.check_symmetry(model, params, spec, x, in_spec=(None, None, "x"))
    with pytest.raises(sc.ShapeError, match="'x' has size 3"):
        sc.check_symmetry(model, params, spec, x, in_spec=("x", None))


def test_trees_of_outputs_are_compared_array_by_array() -> None:
    params, x = network()

    def many(params: Any, x: Any) -> Any:
        return {"y": (model(params, x), [params["bias"].sum()]), "order": params["bias"] * 1e-6}

    with pytest.raises(sc.CheckError, match=r"changes y\['order'\] by"):
        sc.check_symmetry(many, params, SPEC, x)
    out_spec = {"y": [(), [()]], "order": ("h",)}
    assert sc.check_symmetry(many, params, SPEC, x, out_spec=out_spec).conclusive
    with pytest.raises(sc.CheckError, match=r"y\[0\] is a str, expected an array of numbers"):
        sc.check_symmetry(lambda params, x: ["text"], params, SPEC, x)
    with pytest.raises(sc.CheckError, match="no arrays"):
        sc.check_symmetry(lambda params, x: None, params, SPEC, x)


def test_a_label_that_the_outputs_do_not_depend_on_is_told() -> None:
    """Dead neurons, a constant function: nothing is proven, whatever the spec says."""
    params, x = network()
    dead = {**params, "out": np.zeros((6, 2))}
    wrong = {**SPEC, "bias": ("other",)}
    report = sc.check_symmetry(model, dead, wrong, x)
    assert report.unnoticed == ("h", "other")
    assert not report.conclusive
    assert "says nothing of labels that the outputs do not depend on: 'h', 'other'" in str(report)

    params["in"][:] = 0
    params["bias"][:] = -5
    relu = sc.check_symmetry(
        lambda p, x: np.maximum(x @ p["in"] + p["bias"], 0) @ p["out"] + 1, params, SPEC, x
    )
    assert relu.unnoticed == ("h",)


def test_a_label_on_one_axis_only_is_noticed_by_its_entries() -> None:
    params, x = network()
    spec = {"in": (None, "h")}

    def pooled(params: Any, x: Any) -> Any:
        return np.tanh(x @ params["in"]).sum(-1)

    assert sc.check_symmetry(pooled, {"in": params["in"]}, spec, x).conclusive
    report = sc.check_symmetry(lambda params, x: x, {"in": params["in"]}, spec, x)
    assert report.unnoticed == ("h",)


def test_tensors_that_permuting_does_not_change_are_told() -> None:
    """A fresh bias of zeros passes with any label."""
    params, x = network()
    params["bias"][:] = 0
    report = sc.check_symmetry(model, params, SPEC, x)
    assert report.unmoved == (("bias",),)
    assert not report.conclusive
    assert "says nothing of tensors constant along their axes: ['bias']" in str(report)


def test_nothing_permuted_is_told() -> None:
    params = {"in": np.ones((3, 1)), "bias": np.ones(1), "out": np.ones((1, 2))}
    report = sc.check_symmetry(model, params, SPEC, np.ones((4, 3)))
    assert report.permuted == ()
    assert not report.conclusive
    assert "nothing was permuted" in str(report)


def test_tensors_without_a_spec_stay_and_are_told() -> None:
    params, x = network()
    spec = {"net": SPEC}
    tree = {"net": {**params, "scale": np.float64(2)}, "steps": np.int64(3)}

    def scaled(tree: Any, x: Any) -> Any:
        return model(tree["net"], x) * tree["net"]["scale"] * tree["steps"]

    report = sc.check_symmetry(scaled, tree, spec, x)
    assert report.unnamed == (("steps",), ("net", "scale"))
    assert "does not name, and that stayed: ['steps'], ['net']['scale']" in str(report)
    lists = [params["in"], params["bias"], params["out"], np.float64(2)]
    report = sc.check_symmetry(
        lambda p, x: np.tanh(x @ p[0] + p[1]) @ p[2] * p[3], lists, list(SPEC.values()), x
    )
    assert report.unnamed == ((3,),)


def test_randomness_and_broken_outputs_are_rejected() -> None:
    params, x = network()
    rng = np.random.default_rng(0)
    with pytest.raises(sc.CheckError, match="for the same parameters and inputs; switch off"):
        sc.check_symmetry(lambda p, x: model(p, x) + rng.normal(), params, SPEC, x)
    with pytest.raises(sc.CheckError, match="differ by nan"):
        sc.check_symmetry(lambda p, x: model(p, x) * np.nan, params, SPEC, x)
    with pytest.raises(sc.CheckError, match=r"y has shape .* must not depend on the values"):
        sc.check_symmetry(
            lambda p, x: model(p, x)[: 2 + int(p["bias"][0] > p["bias"][1])], params, SPEC, x
        )


def test_arguments_that_do_not_fit_are_refused() -> None:
    params, x = network()
    with pytest.raises(sc.OptionError, match="trials=0"):
        sc.check_symmetry(model, params, SPEC, x, trials=0)
    with pytest.raises(sc.ShapeError, match=r"^params, at the root: missing 'more'"):
        sc.check_symmetry(model, params, {**SPEC, "more": ("h",)}, x)
    with pytest.raises(sc.ShapeError, match=r"^params\['in'\].*one label has one size"):
        sc.check_symmetry(model, params, {**SPEC, "in": ("h", "h")}, x)
    spec = {"in": (None, ("a", "b")), "bias": (("a", "b"),), "out": (("a", "b"), None)}
    with pytest.raises(sc.ShapeError, match=r"the size of '[ab]' cannot be read off"):
        sc.check_symmetry(model, params, spec, x)
    assert sc.check_symmetry(model, params, spec, x, sizes={"a": 2}).permuted == ("a", "b")


def test_the_tolerance_is_that_of_the_outputs_dtype() -> None:
    params, x = network(dtype=np.float32)
    report = sc.check_symmetry(model, params, SPEC, x)
    assert (report.dtype, report.tolerance) == ("float32", 1e-4)
    with pytest.raises(sc.CheckError, match="allowed 0"):
        sc.check_symmetry(model, params, {**SPEC, "in": ("x", "h")}, x, tolerance=0)


def test_jax_parameters() -> None:
    jax = pytest.importorskip("jax")
    params, x = network(dtype=np.float32)
    params = jax.tree.map(jax.numpy.asarray, params)

    @jax.jit
    def jitted(params: Any, x: Any) -> Any:
        assert isinstance(params["in"], jax.Array)
        return jax.numpy.tanh(x @ params["in"] + params["bias"]) @ params["out"]

    assert sc.check_symmetry(jitted, params, SPEC, x).conclusive
    with pytest.raises(sc.CheckError, match="'x' alone"):
        sc.check_symmetry(jitted, params, {**SPEC, "in": ("x", "h")}, x)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_torch_parameters(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    params, x = network()
    params = {name: torch.tensor(v, dtype=kind, requires_grad=True) for name, v in params.items()}
    x = torch.tensor(x, dtype=kind)

    def tensors(params: Any, x: Any) -> Any:
        return torch.tanh(x @ params["in"] + params["bias"]) @ params["out"]

    report = sc.check_symmetry(tensors, params, SPEC, x)
    assert (report.dtype, report.conclusive) == (dtype, True)
    with pytest.raises(sc.CheckError, match="'x' alone"):
        sc.check_symmetry(tensors, params, {**SPEC, "in": ("x", "h")}, x)
