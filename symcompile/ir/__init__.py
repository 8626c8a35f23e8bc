"""The intermediate representation: a Program of single-assignment ops over typed values.

In: what `symcompile.lower` builds. Out: the same program printed, parsed, verified, or expanded
symbolically to the diagrams it computes (`diagrams_of`).
"""

from symcompile.ir.accumulate import Accumulation, accumulations, large_sums
from symcompile.ir.batch import batch_behind, grouped
from symcompile.ir.builder import Builder
from symcompile.ir.extent import lazy_axes
from symcompile.ir.filled import Block, Filled
from symcompile.ir.levels import by_level, levels_of
from symcompile.ir.meaning import Slot, Term, diagrams_of
from symcompile.ir.ops import (
    Add,
    BatchMix,
    Broadcast,
    Concat,
    Const,
    Diagonal,
    Embed,
    Input,
    Mix,
    Op,
    Output,
    Pick,
    Reduce,
    Slice,
    Transpose,
)
from symcompile.ir.ownership import WIDE, Ownership, Sum, ownership, ownership_once, tiles, tiling
from symcompile.ir.program import Program, fact, types_of, verify
from symcompile.ir.readers import readers_of
from symcompile.ir.sources import sources_of
from symcompile.ir.text import parse_program, print_program
from symcompile.ir.transpose import Transposed, transposed
from symcompile.ir.types import Tensor, Type

__all__ = [
    "WIDE",
    "Accumulation",
    "Add",
    "BatchMix",
    "Block",
    "Broadcast",
    "Builder",
    "Concat",
    "Const",
    "Diagonal",
    "Embed",
    "Filled",
    "Input",
    "Mix",
    "Op",
    "Output",
    "Ownership",
    "Pick",
    "Program",
    "Reduce",
    "Slice",
    "Slot",
    "Sum",
    "Tensor",
    "Term",
    "Transpose",
    "Transposed",
    "Type",
    "accumulations",
    "batch_behind",
    "by_level",
    "diagrams_of",
    "fact",
    "grouped",
    "large_sums",
    "lazy_axes",
    "levels_of",
    "ownership",
    "ownership_once",
    "parse_program",
    "print_program",
    "readers_of",
    "sources_of",
    "tiles",
    "tiling",
    "transposed",
    "types_of",
    "verify",
]
