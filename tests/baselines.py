"""What the reference program costs, by building it: what the baseline's closed forms are held to.

In: a schema. The one thing to know: figures are compared for the reference and for the reference
with equal values shared, and every figure exactly.
"""

from __future__ import annotations

from symcompile.cost import total_work, work_of
from symcompile.cost.memory import footprint, peak_entries
from symcompile.ir import Mix, Reduce
from symcompile.lower import lower_reference
from symcompile.passes import share_equal
from symcompile.planner.baseline import baseline
from symcompile.planner.baseline_peak import baseline_peak
from symcompile.spec import label_order


def held_to_programs(schema, reduce="mean"):
    """Every figure of both baselines is that of the program itself."""
    reference = lower_reference(schema, reduce)
    sizes = sizes_of(schema)
    for share, program in ((False, reference), (True, share_equal(reference))):
        found = baseline(schema, share=share)
        assert found.work == total_work(work_of(program)), share
        assert found.reductions == sum(isinstance(op, Reduce) for op in program.ops), share
        assert found.mixes == mixes_of(program), share
        peak = peak_entries(footprint(program, sizes))
        assert baseline_peak(schema, sizes, share=share) == peak, share


def sizes_of(schema):
    """Those known, and different ones for all other labels."""
    labels = {label for tensor in (*schema.inputs, *schema.outputs) for label in tensor.labels}
    assumed = {label: 3 + place for place, label in enumerate(sorted(labels, key=label_order))}
    return assumed | dict(schema.sizes)


def mixes_of(program):
    """How often channels of features are mixed: of two mixes in a row, at low rank, one counts."""
    shapes = dict(program.weights)
    first = {op.args[0] for op in program.ops if isinstance(op, Mix)}
    return sum(
        isinstance(op, Mix) and len(shapes[op.weight]) == 2 and number not in first
        for number, op in enumerate(program.ops)
    )
