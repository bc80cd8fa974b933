"""The command line: one line and exit code 2 for every mistake of the user's."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffussm_jax.main import MODES

ROOT = Path(__file__).parents[1]
DIGITS = "--config=configs/digits.py"
MISTAKES = [
    ((DIGITS, "--workdir={tmp}/run", "--config.model.detph=3"), "did you mean 'model.depth'"),
    ((DIGITS, "--workdir={tmp}/run", "--config.model.depth=three"), "model.depth"),
    ((DIGITS, "--workdir={tmp}/run", "--config.model.depth=2.5"), "model.depth"),
    ((DIGITS, "--workdir={tmp}/run", "--config.model=3"), "model"),
    ((DIGITS, "--workdir=s3://a/b", "--mode=sample"), "s3:// is neither"),
    (
        (DIGITS, "--workdir={tmp}/run", "--config.model.m=3"),
        "config.model.m must divide the 64 tokens",
    ),
    (
        (DIGITS, "--workdir={tmp}/run", "--config.model.ssm_implementation=cuda"),
        "ssm_implementation",
    ),
    ((DIGITS, "--workdir={tmp}/run", "--config.optimizer.grad_clip=x"), "grad_clip"),
    ((DIGITS,), "--workdir is missing"),
    ((DIGITS, "--workdir="), "--workdir is missing"),
    ((DIGITS, "--workdir=x", "--config.plan.search=True"), "search=True needs --mode=plan"),
    ((DIGITS, "--workdir=/dev/null/run"), "--workdir=/dev/null/run cannot be written"),
    ((DIGITS, "--workdir={tmp}/run", "--mode=trian"), "mode"),
    ((DIGITS, "--workdir={tmp}/run", "--wrokdir=x"), "wrokdir"),
    ((DIGITS, "--workdir={tmp}/run", "train"), "unexpected argument 'train'"),
    ((DIGITS, "--workdir={tmp}/none", "--mode=sample"), "holds no run"),
    (("--workdir={tmp}/run",), "--config is missing"),
    (("--config=configs/none.py", "--workdir={tmp}/run"), "configs/none.py"),
    (("--config=configs/lsun256.py:kitchen", "--workdir={tmp}/run"), "church or bedroom"),
    (("--config={tmp}/broken.py", "--workdir={tmp}/run"), "broken.py"),
    (("--config=configs/imagenet256.py", "--workdir={tmp}/run"), "cached latents"),
    (("--config=configs/lsun256.py", "--workdir={tmp}/run"), "cached latents"),
    (
        ("--config=configs/cifar10.py", "--workdir={tmp}/run", "--config.data.data_dir={tmp}"),
        "tfds.builder('cifar10', file_format='array_record', data_dir=",
    ),
]
QUICK = {"did you mean 'model.depth'", "--workdir is missing", "holds no run"}


def run(*arguments):
    command = [sys.executable, "-m", "diffussm_jax.main", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [pytest.param(*case, marks=() if case[1] in QUICK else pytest.mark.slow) for case in MISTAKES],
    ids=str,
)
def test_mistakes_end_in_one_line_and_2(arguments, message, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_a_finished_run_of_another_model_and_sampling(trained, tmp_path):
    """What needs a work directory with a run in it."""
    shutil.copytree(trained, tmp_path / "run")
    other = run(DIGITS, f"--workdir={tmp_path / 'run'}")
    assert other.returncode == 2
    assert "holds a run with model.depth = 2" in other.stderr.splitlines()[-1]
    assert "Traceback" not in other.stderr


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_a_function_of_its_module(mode):
    assert callable(getattr(importlib.import_module(f"diffussm_jax.{mode}"), mode))


def test_help_lists_the_flags():
    result = run("--help")
    assert "--workdir" in result.stdout
    unwrapped = "".join(line.strip() for line in result.stdout.splitlines())
    assert f"<{'|'.join(MODES)}>" in unwrapped
