"""The walk of docs/image-folders.md: its own commands, and every line that it shows."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from diffussm_jax import main
from diffussm_jax.errors import UserError
from examples import photos
from tests import command_line

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "image-folders.md").read_text(encoding="utf-8")
WALK = PAGE[PAGE.index("## A folder, from the first command to the last") :]


@pytest.mark.slow
def test_an_untidy_folder_from_the_first_command_to_the_last(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    variables: dict[str, str] = {}
    blocks = re.findall(r"```(bash|text)\n(.*?)```", WALK, flags=re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "text"] * 5
    errors = []
    with caplog.at_level("INFO", "diffussm_jax"):
        for (_, commands), (_, lines) in zip(blocks[::2], blocks[1::2]):
            errors += [run(command, variables) for command in commands.splitlines()]
            # All that was said so far, because a process says once what is in a folder.
            said = "\n".join([*caplog.messages, *errors])
            for line in lines.splitlines():
                assert line in said


def run(command, variables):
    """Run a line as a shell does; the line that a command of ours ends with, or nothing."""
    for name, value in variables.items():
        command = command.replace(f"${name}", value)
    words = shlex.split(command)
    if assignment := re.fullmatch(r"([A-Z])=(.*)", words[0]):
        variables[assignment[1]] = assignment[2]
    elif words[:3] == ["python", "-m", "examples.photos"]:
        photos.main(Path(words[-1]), untidy="--untidy" in words)
    elif words[:3] == ["python", "-m", "diffussm_jax.main"]:
        return run_mode(words[3:])
    else:
        subprocess.run(words, check=True)
    return ""


def run_mode(arguments):
    mode = next((x.removeprefix("--mode=") for x in arguments if x.startswith("--mode=")), "train")
    config, workdir = command_line.read(*arguments)
    function = getattr(importlib.import_module(f"diffussm_jax.{mode}"), mode)
    try:
        function(config) if main.MODES[mode].workdir == "unused" else function(config, workdir)
    except UserError as error:
        return f"error: {error}"
    return ""
