"""A compiled layer as an `nn.Module`.

In: a `Compiled`. Out: an instance of the generated class that also knows its source, plan, basis
and spec. Its parameters are the canonical weights and nothing else; it pickles with its source, so
the process that loads it needs no file of ours.
"""

from __future__ import annotations

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
    (*batch, *axes, channels) and keeps the inputs' dtype.

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
        return _rebuild, (self.compiled,), self.__dict__

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
    # Named as the generated class, so that inspect.getsource finds the generated code.
    made = type(
        generated.__name__,
        (TorchLayer, generated),
        {"__module__": module.__name__, "__doc__": generated.__doc__},
    )
    _CLASSES[source] = made
    return made


def _rebuild(compiled: Compiled) -> TorchLayer:
    """An instance without weights, for unpickling and copying to fill."""
    kind = _class_of(compiled)
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.compiled = compiled
    return layer
