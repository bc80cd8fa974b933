"""The pictures of the documentation are those that their code draws, and its commands parse."""

import re
import shlex
from pathlib import Path

import pytest
from absl import flags

from diffussm_jax import main
from docs import draw

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/*.py"))]
# A command of a shipped config on lines of its own; others have placeholders, or run elsewhere.
COMMAND = re.compile(
    r"^[^\s\"]*python -m diffussm_jax\.main ((?:[^\n`]*\\\n)*[^\n`]*)$", re.MULTILINE
)
SHIPPED = re.compile(r"--config=configs/[a-z0-9_]+\.py\b")


@pytest.mark.parametrize("name", draw.PICTURES)
def test_a_picture_is_the_drawn_one(name):
    drawn = draw.PICTURES[name]()
    assert (draw.IMAGES / name).read_text() == drawn, "run `python -m docs.draw`"


def commands_in(page):
    found = (text.replace("\\\n", " ") for text in COMMAND.findall(page.read_text()))
    return [shlex.split(text, comments=True) for text in found if SHIPPED.search(text)]


@pytest.fixture
def flags_from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    yield
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands_in(page)], ids=lambda p: p.name
)
def test_commands_parse(page, flags_from_the_root):
    for command in commands_in(page):
        flags.FLAGS.unparse_flags()
        main.read_run(main.parse_flags(["main", *command]))


def test_a_recipe_and_its_page_give_the_same_commands():
    recipe = commands_in(ROOT / "configs" / "distill_dit256.py")
    page = commands_in(ROOT / "docs" / "distillation.md")
    assert len(recipe) == 3
    assert all(command in page for command in recipe)
