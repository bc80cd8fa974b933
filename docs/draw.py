"""Draw docs/images/block.svg and docs/images/rooms.svg: `python -m docs.draw`.

The block is that of models/block.py, and the rooms are the ladder of tests/test_architecture.py.
tests/test_docs.py fails when a committed picture is not the one that this file draws.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from tests.test_architecture import LADDER, PACKAGE

IMAGES = Path(__file__).parent / "images"
SANS = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
SERIF = "Georgia, 'Times New Roman', 'Liberation Serif', serif"
MONO = "'SF Mono', Menlo, Consolas, 'Liberation Mono', monospace"

INK, GREY, LINE, BAND = "#1d2433", "#667085", "#475467", "#f1f4fa"

Point = tuple[float, float]
Colours = tuple[str, str]  # of the inside and of the edge

CARD: Colours = ("#ffffff", "#d5d9e2")
PLAIN: Colours = ("#f2f4f7", "#98a2b3")
BLUE: Colours = ("#e4ecff", "#6a86f0")
ORANGE: Colours = ("#ffefd6", "#ef9a2d")
PURPLE: Colours = ("#f0e9fe", "#9673f0")

# What each room does or holds, in the few words that fit under its name.
PURPOSES = {
    "main": "flags, modes, exit codes",
    "train": "the train loop",
    "sample": "draw images",
    "evaluate": "score images",
    "refstats": "measure real images",
    "encode": "images to latents",
    "export": "weights to a folder",
    "verify": "redraw and compare",
    "replay": "repeat a bad step",
    "inspect": "see what layers see",
    "edit": "images from images",
    "plan": "fit a TPU slice",
    "flops": "count multiply-adds",
    "convert": "PyTorch weights to JAX",
    "evaluation": "features, FID, precision and recall",
    "planning": "estimates by the TPU compiler",
    "inspection": "maps, filters, pictures",
    "editing": "folders, masks, results",
    "exporting": "PyTorch, diffusers, pages",
    "sampling": "the compiled sampler, jobs, images",
    "workdir": "checkpoints, records and weights on disk",
    "training": "step, state, optimizer, averages",
    "autoencoder": "pixels to latents and back",
    "models": "block and backbones",
    "diffusion": "processes and samplers",
    "data": "sources and batches",
    "parallel": "mesh and processes",
    "files": "reading and writing",
    "config": "fields and rules",
    "ops": "the SSM operator",
    "errors": "with their exit codes",
    "shapes": "the letters of the axes",
}


@dataclasses.dataclass(frozen=True)
class Box:
    """A rounded box around a title and a note below it."""

    x: float  # of the centre
    y: float
    width: float
    height: float
    title: str
    note: str = ""
    colours: Colours = PLAIN
    radius: float = 8  # of the corners
    font: str = SANS

    @property
    def left(self) -> Point:
        return self.x - self.width / 2, self.y

    @property
    def right(self) -> Point:
        return self.x + self.width / 2, self.y

    @property
    def top(self) -> Point:
        return self.x, self.y - self.height / 2

    @property
    def bottom(self) -> Point:
        return self.x, self.y + self.height / 2

    def __str__(self) -> str:
        (left, _), (_, top) = self.left, self.top
        outline = {"width": self.width, "height": self.height, "rx": self.radius}
        parts = [tag("rect", x=left, y=top, **outline, **paint(self.colours))]
        lift = 8 if self.note else 0
        parts.append(text(self.x, self.y + 5 - lift, self.title, weight=600, font=self.font))
        if self.note:
            parts.append(note(self.x, self.y + 15, self.note))
        return "\n".join(parts)


def block() -> str:
    """The five equations of docs/architecture.md, from left to right.

    The shape behind them is as high as the sequence is long.
    """
    top, middle, bottom = 46, 184, 312  # the residual, the hourglass, the gate
    norm = Box(138, middle, 100, 54, "LayerNorm", "scale, shift")
    w_0 = Box(259, middle, 58, 54, "W_0", "gelu", BLUE)
    w_up = Box(346, middle, 62, 54, "W_up", "gelu", BLUE)
    forward = Box(483, middle - 35, 96, 54, "S4D", "forward →", ORANGE)
    backward = Box(483, middle + 35, 96, 54, "S4D", "← backward", ORANGE)
    w_down = Box(624, middle, 70, 54, "W_down", "gelu", BLUE)
    w_2 = Box(729, middle, 58, 54, "W_2", "gelu", BLUE)
    w_1 = Box(729, bottom, 58, 54, "W_1", "gelu", BLUE)
    product = knot(797, middle, "×")
    w_3 = Box(864, middle, 58, 54, "W_3", "init 0", BLUE)
    total = knot(942, middle, "+")
    x_fork, i_fork, u_fork, y_join = ((x, middle) for x in (68, 206, 405, 561))
    boxes = (norm, w_0, w_up, forward, backward, w_down, w_2, w_1, product, w_3, total)
    return picture(
        1000,
        366,
        silhouette((32, 968), 40, bulge=(w_up.x, w_down.x), bulge_half_height=78, y=middle),
        line((52, middle), norm.left),
        line(x_fork, (x_fork[0], top), (total.x, top), total.top),
        line((norm.x, bottom - 32), norm.bottom),
        line(norm.right, w_0.left),
        line(i_fork, (i_fork[0], bottom), w_1.left),
        line(w_0.right, w_up.left),
        line(w_up.right, u_fork, (u_fork[0], forward.y), forward.left),
        line(u_fork, (u_fork[0], backward.y), backward.left),
        line(forward.right, (y_join[0], forward.y), y_join, w_down.left),
        line(backward.right, (y_join[0], backward.y), y_join, has_head=False),
        line(w_down.right, w_2.left),
        line(w_2.right, product.left),
        line(w_1.right, (product.x, bottom), product.bottom),
        line(product.right, w_3.left),
        line(w_3.right, total.left),
        line(total.right, (978, middle)),
        *(dot(*fork) for fork in (x_fork, i_fork, u_fork, y_join)),
        *boxes,
        symbol(40, middle + 6, "x", size=20),
        symbol(norm.x, bottom - 12, "c", size=20),
        note(norm.x, bottom + 10, "step, class"),
        symbol(197, middle - 10, "i"),
        symbol(391, middle - 10, "U"),
        symbol(575, middle - 10, "Y"),
        symbol(678, middle - 10, "I′"),
        symbol(909, middle - 10, "O"),
        note(259, middle - 54, "l / m groups"),
        note(483, middle - 92, "l tokens"),
        note(729, middle - 54, "l / m groups"),
    )


def rooms() -> str:
    """The ladder from `main` down to the ground; modules and folders differ by colour."""
    left, right, height, gap = 98, 976, 48, 12
    parts: list[object] = []
    y = 24.0
    for number, rung in reversed([*enumerate(LADDER)]):
        names = rung.split()
        rows = [names[start : start + 5] for start in range(0, len(names), 5)]
        middle = y + (len(rows) * (height + gap) - gap) / 2
        parts.append(text(74, middle + 5, str(number), colour=GREY))
        for row in rows:
            width = (right - left + gap) / len(row) - gap
            for index, room in enumerate(row):
                x = left + width / 2 + index * (width + gap)
                parts.append(room_box(room, x, y + height / 2, width, height))
            y += height + gap
    bottom = y - gap
    parts += [line((44, 24), (44, bottom)), rotated("imports", 32, (24 + bottom) / 2)]
    return picture(1000, round(bottom) + 24, *parts)


def room_box(room: str, x: float, y: float, width: float, height: float) -> Box:
    is_module = (PACKAGE / f"{room}.py").exists()
    name, colours = (f"{room}.py", PURPLE) if is_module else (f"{room}/", BLUE)
    return Box(x, y, width, height, name, PURPOSES[room], colours, font=MONO)


def knot(x: float, y: float, sign: str) -> Box:
    """A small circle around an operation on two arrays."""
    return Box(x, y, 28, 28, sign, radius=14)


def dot(x: float, y: float) -> str:
    """A dot where a line forks or two lines join."""
    return tag("circle", cx=x, cy=y, r=3, fill=LINE)


def silhouette(
    ends: tuple[float, float],
    half_height: float,
    *,
    bulge: tuple[float, float],
    bulge_half_height: float,
    y: float,
) -> str:
    """A band from end to end that is higher within its bulge."""
    slope = 26
    outline = [
        (ends[0], half_height),
        (bulge[0] - slope, half_height),
        (bulge[0] + slope, bulge_half_height),
        (bulge[1] - slope, bulge_half_height),
        (bulge[1] + slope, half_height),
        (ends[1], half_height),
    ]
    points = [(x, y - h) for x, h in outline] + [(x, y + h) for x, h in reversed(outline)]
    # A wide edge of the same colour rounds the corners.
    edge = {"stroke": BAND, "stroke_width": 16, "stroke_linejoin": "round"}
    return tag("polygon", points=joined(points), fill=BAND, **edge)


def line(*points: Point, has_head: bool = True) -> str:
    """A line through points, with an arrow's head at its end."""
    head = {"marker_end": "url(#head)"} if has_head else {}
    style = {"fill": "none", "stroke": LINE, "stroke_width": 1.5, "stroke_linejoin": "round"}
    return tag("polyline", points=joined(points), **style, **head)


def symbol(x: float, y: float, name: str, *, size: float = 15) -> str:
    """The name of an array, as in an equation."""
    return text(x, y, name, size=size, style="italic", font=SERIF)


def note(x: float, y: float, words: str) -> str:
    return text(x, y, words, size=13, colour=GREY)


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: float = 15,
    weight: int = 400,
    style: str = "normal",
    colour: str = INK,
    font: str = SANS,
) -> str:
    """Text centred at x on the baseline y; `W_up` has an index."""
    words = re.sub(r"_(\w+)", lambda match: tag("tspan", match[1], dy=4, font_size="72%"), words)
    face = {"font_family": font, "font_size": size, "font_weight": weight, "font_style": style}
    return tag("text", words, x=x, y=y, text_anchor="middle", fill=colour, **face)


def rotated(words: str, x: float, y: float) -> str:
    """A note that reads upwards."""
    return tag("g", note(x, y, words), transform=f"rotate(-90 {x:g} {y:g})")


def picture(width: int, height: int, *parts: object) -> str:
    """Parts on a light card, which reads on a dark page too."""
    head = tag("path", d="M0 0.8 L10 5 L0 9.2 z", fill=LINE)
    size = {"viewBox": "0 0 10 10", "refX": 9, "refY": 5, "markerWidth": 7, "markerHeight": 7}
    marker = tag("marker", head, id="head", orient="auto", **size)
    inside = {"x": 0.75, "y": 0.75, "width": width - 1.5, "height": height - 1.5}
    card = tag("rect", rx=14, **inside, **paint(CARD))
    content = "\n".join(["", tag("defs", marker), card, *map(str, parts), ""])
    frame = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("svg", content, xmlns="http://www.w3.org/2000/svg", **frame) + "\n"


def paint(colours: Colours) -> dict[str, object]:
    fill, edge = colours
    return {"fill": fill, "stroke": edge, "stroke_width": 1.5}


def joined(points: Iterable[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An SVG element; the underscore in `stroke_width` becomes a dash."""
    start = name
    for key, value in attributes.items():
        shown = f"{value:g}" if isinstance(value, float) else value
        start += f' {key.replace("_", "-")}="{shown}"'
    return f"<{start}>{content}</{name}>"


PICTURES = {"block.svg": block, "rooms.svg": rooms}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")
