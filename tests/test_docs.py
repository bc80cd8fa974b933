"""The pictures of the documentation are those that their code draws."""

import pytest

from docs import draw


@pytest.mark.parametrize("name", draw.PICTURES)
def test_a_picture_is_the_drawn_one(name):
    drawn = draw.PICTURES[name]()
    assert (draw.IMAGES / name).read_text() == drawn, "run `python -m docs.draw`"
