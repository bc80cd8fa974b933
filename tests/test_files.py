"""Files on disk."""

import pytest

from diffussm_jax.files import is_desktop_litter


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._cat.png",
        "@eaDir",
        "Thumbs.db",
        "__MACOSX",
        "desktop.ini",
        ".ipynb_checkpoints",
        ".Trash-1000",
        "System Volume Information",
    ],
)
def test_what_desktop_systems_leave_is_nobodys_file(name):
    assert is_desktop_litter(name)


@pytest.mark.parametrize("name", ["cat.png", "_background", ".git", "config.json", "Thumbs", ""])
def test_anything_else_is_somebodys_file(name):
    assert not is_desktop_litter(name)
