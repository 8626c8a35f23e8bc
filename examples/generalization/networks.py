"""The zoo: some thousand digit classifiers, trained each in a way of its own.

In: a family and how many. Out: a `zoo.Zoo`, kept on disk, so that it is trained once.

The one thing to know: everything varies that a weight-space network should see through: learning
rate, initial scale, number of steps, weight decay and label noise. Widths are kept.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from examples import zoo
from symcompile.specs import Network, cnn, mlp

__all__ = ["CACHE", "FAMILIES", "Family", "draw_recipe", "make_zoo", "permute_all"]

Family: TypeAlias = Literal["mlp", "cnn"]

CACHE = Path(__file__).parent / "cache"
FAMILIES: dict[Family, tuple[Network, zoo.Predict]] = {
    "mlp": (mlp((64, 16, 16, 10)), zoo.predict_mlp),
    "cnn": (cnn((6, 12), head="pool"), zoo.predict_pooled_cnn),
}


def make_zoo(
    family: Family,
    count: int,
    *,
    steps: int = 200,
    seed: int = 0,
    cache: Path | None = CACHE,
    progress: zoo.Progress | None = None,
) -> zoo.Zoo:
    """`count` networks of a family, trained for at most `steps` steps; from disk if there.

    A file goes by the arguments and by the code that trains: change it, and they are retrained.

    >>> make_zoo("mlp", 3, steps=10, cache=None).params["Dense_1"]["kernel"].shape
    (3, 16, 16)
    """
    network, predict = FAMILIES[family]
    recipe = draw_recipe(count, steps, np.random.default_rng([seed, 1]))
    code = b"".join(Path(file).read_bytes() for file in (__file__, str(zoo.__file__)))
    file = cache and cache / f"{family}-{count}-{steps}-{seed}-{sha256(code).hexdigest()[:8]}.npz"
    if file and file.exists():
        with np.load(file) as stored:
            leaves = [stored[str(i)] for i in range(len(stored.files) - 1)]
            accuracies = stored["accuracies"]
        structure = jax.tree.structure(network.spec, is_leaf=lambda x: isinstance(x, tuple))
        params = jax.tree.unflatten(structure, leaves)
        return zoo.Zoo(family, params, network.spec, network.shapes, predict, accuracies)
    trained = zoo.train(family, network, predict, recipe, seed=seed, progress=progress)
    if file:
        file.parent.mkdir(exist_ok=True, parents=True)
        named = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(trained.params))}
        part = file.with_suffix(".part.npz")  # a broken-off run leaves no half a file
        np.savez(part, accuracies=trained.accuracies, **named)
        part.replace(file)
    return trained


def draw_recipe(count: int, steps: int, rng: np.random.Generator) -> zoo.Recipe:
    """What varies from network to network, each drawn independently of the others.

    Learning rates, initial scales and weight decays are log-uniform in [3e-4, 3e-2], [0.3, 3] and
    [1e-3, 1]; steps are uniform between a tenth of `steps` and all; every other network has noisy
    labels, a share uniform up to 0.8.
    """

    def log_uniform(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(np.float32)

    noisy = rng.random(count) < 0.5
    return zoo.Recipe(
        rates=log_uniform(3e-4, 3e-2),
        steps=rng.integers(steps // 10, steps, count, endpoint=True),
        scales=log_uniform(0.3, 3.0),
        decays=log_uniform(1e-3, 1.0),
        noise=np.where(noisy, rng.uniform(0, 0.8, count), 0).astype(np.float32),
    )


def permute_all(spec: Any) -> Any:
    """A spec whose fixed axes (inputs, classes, taps) are permuted too, each layer's by themselves.

    A larger group than the networks have, so fewer weights to learn; the statistics that stand
    beside do not need positions either.

    >>> permute_all(mlp((64, 16, 10)).spec)["Dense_1"]
    {'kernel': ('hidden0', 'Dense_1/-1'), 'bias': ('Dense_1/-1',)}
    """
    return {
        layer: {
            name: tuple(
                f"{layer}/{place - len(axes)}" if axis is None else axis
                for place, axis in enumerate(axes)
            )
            for name, axes in tensors.items()
        }
        for layer, tensors in spec.items()
    }
