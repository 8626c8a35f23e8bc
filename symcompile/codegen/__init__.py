"""What every backend shares: the source writer, the loader of generated source, the registry."""

from symcompile.codegen.backend import Backend, backend_names, get_backend
from symcompile.codegen.compiled import Compiled, emits
from symcompile.codegen.dialect import Batching, Dialect, Embedding, Piece, Product
from symcompile.codegen.layer import CompiledLayer
from symcompile.codegen.load import load_module
from symcompile.codegen.stacks import poured_of, stacks_of
from symcompile.codegen.writer import SourceParts, Writer, write_parts

__all__ = [
    "Backend",
    "Batching",
    "Compiled",
    "CompiledLayer",
    "Dialect",
    "Embedding",
    "Piece",
    "Product",
    "SourceParts",
    "Writer",
    "backend_names",
    "emits",
    "get_backend",
    "load_module",
    "poured_of",
    "stacks_of",
    "write_parts",
]
