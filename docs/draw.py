"""Draws the partition diagrams of the mathematics page.

In: diagrams of `symcompile.diagrams`. Out: SVG files in `docs/diagrams`, the same bytes every time.

The one thing to know: the upper row is the output's axes, the lower row the input's, both from left
to right. Blocks that propagate are blue, closed ones red. `python docs/draw.py` writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path

from symcompile.diagrams import Diagram, HalfDiagram, bijections, cut, glue, half_diagrams
from symcompile.spec import Label

FOLDER = Path(__file__).parent / "diagrams"

THROUGH, CLOSED, INK, RULE = "#1565c0", "#c62828", "#333333", "#bbbbbb"
STEP, RISE, STUB, EDGE = 22, 46, 18, 12
"""Pixels: between axes, between rows, of a cut line, around a drawing."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """A piece of SVG with its size in pixels."""

    width: int
    height: int
    body: str


def whole(diagram: Diagram, labels: Sequence[Label] | None = None) -> Sketch:
    """A diagram, with the labels of its joint axes beside them if they are given.

    >>> sketch = whole(Diagram(1, ((0, 1),)))
    >>> sketch.width, sketch.height, sketch.body.count("<circle"), sketch.body.count("<line")
    (24, 70, 2, 1)
    """
    axes = sum(map(len, diagram.blocks))
    split = diagram.out_order
    margin = EDGE if labels is None else 2 * EDGE
    place = {
        axis: (
            EDGE + STEP * (axis if axis < split else axis - split),
            margin + RISE * (axis >= split),
        )
        for axis in range(axes)
    }
    parts = []
    for block in diagram.blocks:
        top = [axis for axis in block if axis < split]
        bottom = [axis for axis in block if axis >= split]
        colour = THROUGH if top and bottom else CLOSED
        if top and bottom:
            parts.append(_line(place[top[0]], place[bottom[0]], colour))
        parts += _block([place[axis] for axis in top], colour, down=True)
        parts += _block([place[axis] for axis in bottom], colour, down=False)
    for axis, label in enumerate(labels or ()):
        x, y = place[axis]
        parts.append(_text(x, y - 9 if axis < split else y + 17, str(label)))
    return Sketch(_width(max(split, axes - split)), RISE + 2 * margin, "".join(parts))


def half(cut_half: HalfDiagram, *, out: bool) -> Sketch:
    """A half-diagram, its propagating blocks cut off: downwards at the output, else upwards.

    >>> half(HalfDiagram(propagating=((0,),), closed=((1, 2),)), out=True).body.count("<line")
    1
    """
    y = EDGE if out else EDGE + STUB
    end = EDGE + STUB if out else EDGE
    parts = []
    for block in cut_half.propagating:
        x = EDGE + STEP * block[0]
        parts.append(_line((x, y), (x, end), THROUGH))
        parts += _block([(EDGE + STEP * axis, y) for axis in block], THROUGH, down=out)
    for block in cut_half.closed:
        parts += _block([(EDGE + STEP * axis, y) for axis in block], CLOSED, down=out)
    return Sketch(_width(cut_half.order), STUB + 2 * EDGE, "".join(parts))


def words(text: str) -> Sketch:
    """One line of text."""
    return Sketch(8 * len(text) + 2 * EDGE, 26, _text(EDGE, 17, text, anchor="start"))


def beside(*sketches: Sketch, gap: int = 8) -> Sketch:
    """From left to right, centred on one line."""
    height = max(sketch.height for sketch in sketches)
    x, body = 0, ""
    for sketch in sketches:
        body += _moved(sketch, x, (height - sketch.height) // 2)
        x += sketch.width + gap
    return Sketch(x - gap, height, body)


def below(*sketches: Sketch, gap: int = 4) -> Sketch:
    """From top to bottom, flush left."""
    y, body = 0, ""
    for sketch in sketches:
        body += _moved(sketch, 0, y)
        y += sketch.height + gap
    return Sketch(max(sketch.width for sketch in sketches), y - gap, body)


def grid(rows: Sequence[Sequence[Sketch]]) -> Sketch:
    """A table whose first row and column are headings, ruled off."""
    widths = [max(sketch.width for sketch in column) for column in zip(*rows, strict=True)]
    heights = [max(sketch.height for sketch in row) + 8 for row in rows]
    body, y = "", 0
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for sketch, width in zip(row, widths, strict=True):
            body += _moved(
                sketch, x + (width - sketch.width) // 2, y + (height - sketch.height) // 2
            )
            x += width
        y += height
    body += _line((0, heights[0]), (sum(widths), heights[0]), RULE)
    body += _line((widths[0], 0), (widths[0], y), RULE)
    return Sketch(sum(widths), y, body)


def svg(sketch: Sketch, title: str) -> str:
    """A whole file on white ground, with a title for those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{sketch.width}" '
        f'height="{sketch.height}" viewBox="0 0 {sketch.width} {sketch.height}">\n'
        f"<title>{escape(title)}</title>\n"
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f"{sketch.body}</svg>\n"
    )


def basis_figure(labels: Sequence[Label]) -> Sketch:
    """Every diagram from a tensor to itself, by signature: in-halves down, out-halves across."""
    blocks = []
    for signature, halves in _by_signature(labels):
        joins = list(bijections(signature))
        heads = [words(""), *(half(out, out=True) for out in halves)]
        rows = [
            [half(into, out=False)]
            + [beside(*(whole(glue(out, into, join)) for join in joins)) for out in halves]
            for into in halves
        ]
        blocks.append(below(words(_name(signature)), grid([heads, *rows])))
    return beside(*blocks, gap=36)


def halves_figure(labels: Sequence[Label]) -> Sketch:
    """Every in half-diagram of a tensor, one line for each signature."""
    return below(
        *(
            below(
                words(f"{_name(signature)}: {len(halves)}"),
                beside(*(half(into, out=False) for into in halves)),
            )
            for signature, halves in _by_signature(labels)
        )
    )


def cut_figure(diagram: Diagram, out: Sequence[Label], into: Sequence[Label]) -> Sketch:
    """A diagram, and its out half, bijection and in half."""
    upper, lower, join = cut(diagram, out, into)
    joins = Diagram(len(join), tuple((top, len(join) + low) for top, low in enumerate(join)))
    parts = [half(upper, out=True), whole(joins), half(lower, out=False)]
    names = ["out half-diagram", "bijection", "in half-diagram"]
    cuts = below(*(beside(part, words(name)) for part, name in zip(parts, names, strict=True)))
    return beside(whole(diagram), words("="), cuts, gap=16)


def labels_figure(pairs: Mapping[str, tuple[Sequence[Label], Sequence[Label]]]) -> Sketch:
    """All diagrams of some pairs (output's labels, input's labels), a line each."""
    lines = []
    for name, (out, into) in pairs.items():
        found = [
            glue(upper, lower, join)
            for upper in half_diagrams(out)
            for lower in half_diagrams(into)
            if upper.signature(out) == lower.signature(into)
            for join in bijections(upper.signature(out))
        ]
        drawn = beside(*(whole(diagram, (*out, *into)) for diagram in found), gap=20)
        lines.append(below(words(name), drawn))
    return below(*lines, gap=12)


def figures() -> dict[str, str]:
    """Every file's name and content."""
    square, cube = (0, 0), (0, 0, 0)
    twisted = Diagram(3, ((0, 4), (1, 2, 3), (5,)))
    pairs = {
        "from Dense_0.kernel (0, 1) to itself": ((0, 1), (0, 1)),
        "from Dense_0.kernel (0, 1) to Dense_0.bias (1,)": ((1,), (0, 1)),
        "from Dense_0.kernel (0, 1) to Dense_1.kernel (1, 2)": ((1, 2), (0, 1)),
    }
    return {
        "basis.svg": svg(basis_figure(square), "The 15 diagrams from (0, 0) to (0, 0)"),
        "cut.svg": svg(cut_figure(twisted, cube, cube), "A diagram cut in two half-diagrams"),
        "halves.svg": svg(halves_figure(cube), "The 22 half-diagrams of (0, 0, 0)"),
        "labels.svg": svg(labels_figure(pairs), "Diagrams between the tensors of an MLP"),
    }


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in figures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def _by_signature(
    labels: Sequence[Label],
) -> Iterator[tuple[tuple[Label, ...], list[HalfDiagram]]]:
    def signature(found: HalfDiagram) -> tuple[Label, ...]:
        return found.signature(labels)

    ordered = sorted(half_diagrams(labels), key=lambda found: len(signature(found)))
    for key, group in groupby(ordered, key=signature):
        yield key, list(group)


def _name(signature: tuple[Label, ...]) -> str:
    return f"signature {signature}"


def _width(axes: int) -> int:
    return STEP * max(axes - 1, 0) + 2 * EDGE


def _block(points: Sequence[tuple[int, int]], colour: str, *, down: bool) -> Iterator[str]:
    """The axes of a block on one row, joined by arcs that bend into the drawing."""
    for (x, y), (u, v) in pairwise(points):
        bend = 10 if down else -10
        yield (
            f'<path d="M{x} {y}Q{(x + u) // 2} {y + 2 * bend} {u} {v}" fill="none" '
            f'stroke="{colour}" stroke-width="2"/>\n'
        )
    for x, y in points:
        yield f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>\n'


def _line(start: tuple[int, int], end: tuple[int, int], colour: str) -> str:
    (x, y), (u, v) = start, end
    return f'<line x1="{x}" y1="{y}" x2="{u}" y2="{v}" stroke="{colour}" stroke-width="2"/>\n'


def _text(x: int, y: int, text: str, anchor: str = "middle") -> str:
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="13" fill="{INK}" '
        f'text-anchor="{anchor}">{escape(text)}</text>\n'
    )


def _moved(sketch: Sketch, x: int, y: int) -> str:
    return f'<g transform="translate({x} {y})">\n{sketch.body}</g>\n'


if __name__ == "__main__":
    main()
