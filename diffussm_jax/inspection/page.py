"""One HTML page that needs no other file: the pictures are in it."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

from diffussm_jax.inspection.figures import Figure
from diffussm_jax.inspection.pictures import Picture

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; color: #1d2433 }
figure { margin: 2.5rem 0 } img { max-width: 100%; border: 1px solid #e4e7ec }
figcaption { max-width: 48rem } td { padding-right: 1.5rem }
"""


def png(picture: Picture) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.quantize(128).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def page(title: str, facts: Mapping[str, object], figures: Sequence[Figure]) -> str:
    """The page of a report."""
    rows = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    parts = [
        f'<figure id="{figure.name}">\n'
        f'<img alt="{figure.name}" src="data:image/png;base64,{_base64(figure.picture)}">\n'
        f"<figcaption>{html.escape(figure.caption)}</figcaption>\n</figure>"
        for figure in figures
    ]
    heading = html.escape(title)
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{heading}</title>',
            f"<style>{_STYLE}</style>\n<h1>{heading}</h1>\n<table>\n{rows}\n</table>",
            *parts,
            "</html>\n",
        ]
    )


def _base64(picture: Picture) -> str:
    return base64.b64encode(png(picture)).decode()
