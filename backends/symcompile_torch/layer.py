"""A compiled layer as an `nn.Module`.

In: a `Compiled`. Out: an instance of the generated class that also knows its source, plan, basis
and spec. Its parameters are the canonical weights and nothing else; it pickles with its source, so
the process that loads it needs no file of ours.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from symcompile.codegen import Compiled, CompiledLayer, load_module
from symcompile_torch.emit import emit

__all__ = ["TorchLayer", "build"]


class TorchLayer(CompiledLayer, nn.Module):
    """What `symcompile.compile(..., backend="torch")` returns.

    `layer(x)` maps a tree of tensors to a tree of tensors; a leaf has shape
    (*batch, *axes, channels). Outputs have the inputs' common dtype; the weights' where inputs are
    integers, a complex one where weights are complex, autocast's under autocast.

    >>> import symcompile as sc, torch
    >>> layer = sc.compile({"w": (0, 1), "b": (1,)}, in_channels=1, out_channels=4)
    >>> y = layer({"w": torch.ones(5, 3, 2, 1), "b": torch.ones(5, 2, 1)})
    >>> tuple(y["w"].shape)
    (5, 3, 2, 4)
    """

    compiled: Compiled
    backend = "torch"

    @property
    def source(self) -> str:
        """The generated file: it needs torch, not symcompile."""
        return emit(self.compiled)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Not what `compile` made: a copy compiles anew. Parametrized modules refuse, and say so.
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        self._own_weights()
        state.pop("_places", None)  # worked out anew
        kind = type(self)
        # A generated class goes as what it is made of, one made of it by name, as others do.
        return _rebuild, (self.compiled, None if kind is _class_of(self.compiled) else kind), state

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchLayer:
        memo[id(self.compiled)] = self.compiled
        layer = memo[id(self)] = _rebuild(self.compiled, type(self))
        state = {key: value for key, value in self.__dict__.items() if key != "_compiled_call_impl"}
        layer.__setstate__(deepcopy(state, memo))  # type: ignore[no-untyped-call]
        return layer

    def _own_weights(self) -> None:
        """Give every weight a storage of its own, unless another process shares it.

        pickle writes the whole storage for every tensor that views it. From then on the layer
        brings weights that are read at once together on every call, until it is next moved.
        """
        for weight in self.parameters(recurse=False):
            shared = weight.device.type == "cpu" and weight.is_shared()  # type: ignore[no-untyped-call]
            if weight.untyped_storage().nbytes() > weight.nbytes and not shared:
                weight.data = weight.data.clone()

    def extra_repr(self) -> str:
        return self.describe()


_CLASSES: WeakValueDictionary[str, type[TorchLayer]] = WeakValueDictionary()
"""Classes in use, by their source."""


def build(compiled: Compiled) -> TorchLayer:
    """Generate, load and instantiate."""
    layer = _class_of(compiled)()
    # The layer's own: equal source does not mean an equal plan, or equal stages.
    layer.compiled = compiled
    return layer


def _class_of(compiled: Compiled) -> type[TorchLayer]:
    source = emit(compiled)
    # Equal layers are of one class, as torch.func.stack_module_state wants its ensembles.
    found = _CLASSES.get(source)
    if found is not None:
        return found
    module = load_module(source, "torch")
    generated = getattr(module, compiled.name)
    # As the generated class, so that inspect.getsource finds the generated code: by its name, and
    # from Python 3.13 on by its line.
    told = ("__module__", "__doc__", "__firstlineno__")
    known = {name: value for name, value in vars(generated).items() if name in told}
    made = type(generated.__name__, (TorchLayer, generated), known)
    _CLASSES[source] = made
    return made


def _rebuild(compiled: Compiled, kind: type[TorchLayer] | None = None) -> TorchLayer:
    """An instance without weights, for unpickling and copying to fill."""
    kind = kind or _class_of(compiled)
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.compiled = compiled
    return layer
