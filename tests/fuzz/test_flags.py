"""Command lines, parsed in this process; a few as a user has them, in a process of their own."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from diffussm_jax import main
from tests.fuzz.one_line import LIMIT, error_of, files_of

ROOT = Path(__file__).parents[2]
DIGITS = "--config=configs/digits.py"
CHANGED_CONFIG = """
from configs import common
def get_config():
    config = common.get_config()
    config.{}
    return config
"""


def start(*arguments):
    """What main does before it does anything."""
    flags.FLAGS.unparse_flags()
    return main.read_run(main.parse_flags(["main", *arguments]))


@pytest.fixture(autouse=True)
def run_from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    yield
    flags.FLAGS.unparse_flags()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config="],
        ["--config"],
        ["--config=nowhere.py"],
        ["--config=configs"],
        ["--config=/dev/null"],
        ["--config=README.md"],
        ["--config=../x.py"],
        ["--config=configs/digits.py:argument"],
        ["--config=configs/imagenet256.py:XXL"],
        ["--config=a\0b.py"],
        [DIGITS, "--workdir="],
        [DIGITS, "--mode="],
        [DIGITS, "--mode=TRAIN", "--workdir=x"],
        [DIGITS, "--mode=train,sample", "--workdir=x"],
        [DIGITS, "--workdir=x", "--", "y"],
        [DIGITS, "--workdir=x", "y"],
        [DIGITS, "--workdir=x", "--num_processes=two"],
        [DIGITS, "--workdir=x", "--start_timeout=0"],
        [DIGITS, "--workdir=x", "--start_timeout=-1"],
        [DIGITS, "--workdir=x", "--process_id=1.5"],
        [DIGITS, "--workdir=x", "---workdir"],
        [DIGITS, "--workdir=x", "--=x"],
        [DIGITS, "--workdir=x", "--config.=3"],
        [DIGITS, "--workdir=x", "--config.model=3"],
        [DIGITS, "--workdir=x", "--config.model={}"],
        [DIGITS, "--workdir=x", "--config.model.depth"],
        [DIGITS, "--workdir=x", "--config.model.depth="],
        [DIGITS, "--workdir=x", "--config.model.depth=1e3"],
        [DIGITS, "--workdir=x", "--config.model.depth=0x10"],
        [DIGITS, "--workdir=x", "--config.model.depth=None"],
        [DIGITS, "--workdir=x", "--config.model.depth=" + "9" * 5000],
        [DIGITS, "--workdir=x", "--config.model.depth=-1"],
        [DIGITS, "--workdir=x", "--config.model.depth.x=1"],
        [DIGITS, "--workdir=x", "--config.model.__class__=1"],
        [DIGITS, "--workdir=x", "--config.__init__=1"],
        [DIGITS, "--workdir=x", "--config.model.gate=maybe"],
        [DIGITS, "--workdir=x", "--config.model.dt_range=1"],
        [DIGITS, "--workdir=x", "--config.model.dt_range=(1,"],
        [DIGITS, "--workdir=x", "--config.model.dt_range=__import__('os')"],
        [DIGITS, "--workdir=x", "--config.optimizer.betas=(0.9,1.0)"],
        [DIGITS, "--workdir=x", "--config.optimizer.betas=(0.9,)"],
        [DIGITS, "--workdir=x", "--config.optimizer.learning_rate=nan"],
        [DIGITS, "--workdir=x", "--config.optimizer.learning_rate=inf"],
        [DIGITS, "--workdir=x", "--config.optimizer.learning_rate=1e-3x"],
        [DIGITS, "--workdir=x", "--config.data.name="],
        [DIGITS, "--workdir=x", "--config.training.init_from="],
        [DIGITS, "--workdir=x", "--config.seed=-1"],
        [DIGITS, "--workdir=x", "--config.seed=2147483648"],
        [DIGITS, "--workdir=x", "--config.sample.classes=(1,x)"],
        [DIGITS, "--workdir=x", "--config.mesh.data=0"],
        [DIGITS, "--workdir=x", "--config.mesh.data=-2"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60].replace("\0", "0"),
)
def test_command_lines(arguments):
    error_of(lambda: start(*arguments))
    assert not (ROOT / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.depth=3", "--config.optimizer.learning_rate=x"], "learning_rate must be"),
        (["--config.model.depth=3", "--config.modle.width=8"], "did you mean 'model.width'"),
        (["--config.model.depth=3", "--config.data.naem=x"], "did you mean 'data.name'"),
        (["--config.model.depth=3", "--conifg.model.width=8"], "Did you mean: config.model.width"),
        (["--config.model.depth", "--config.model.width=8"], "--config.model.depth has no value"),
        (["--workdir", "--config.model.depth=2"], "--workdir has no value"),
        (["--config.data.data_dir=$NONE/x"], "config.data.data_dir=$NONE/x: there is no"),
        (["--workdir=~nosuchuser/x"], "--workdir=~nosuchuser/x: there is no user ~nosuchuser"),
        (["--config=~/none.py"], "--config=~/none.py: No such file"),
    ],
)
def test_the_option_that_is_wrong_is_named(arguments, message):
    assert message in error_of(lambda: start(DIGITS, "--workdir=x", *arguments))


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (
            ["--config.optimizer.grad_clip=1", "--config.optimizer.grad_clip=None"],
            "grad_clip",
            None,
        ),
        (["--config.sample.cfg_interval=None"], "cfg_interval", None),
        (["--config.data.eval_split=None"], "eval_split", None),
        (["--config.data.workers", "3"], "workers", 3),
        (["--config.model.gate"], "gate", True),
        (["--noconfig.data.flip"], "flip", False),
        (["--config.sample.outputs=npz,png"], "outputs", ("npz", "png")),
        (["--config.data.name=folder:~/x"], "name", "folder:/home/me/x"),
        (["--config.evaluate.images=$HOME/x"], "images", "/home/me/x"),
    ],
)
def test_options_replace_what_the_file_says(arguments, field, value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config, workdir = start(*arguments, DIGITS, "--workdir=~/run")
    section = re.search(r"config\.(\w+)\.", arguments[0])[1]
    assert getattr(getattr(config, section), field) == value
    assert workdir == Path("/home/me/run")


def test_a_config_file_finds_its_neighbours_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != ROOT])
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    config, _ = start(f"--config={ROOT}/configs/photos.py", "--workdir=x")
    assert config.data.name == "folder:runs/photos/images"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "neighbour.py").write_text("FIELDS = {'model': {'depth': 3}}\n")
    code = "import neighbour\ndef get_config():\n    return neighbour.FIELDS\n"
    (tmp_path / "own" / "mine.py").write_text(code)
    config, _ = start("--config=own/mine.py", "--workdir=x", "--config.model.width=32")
    assert (config.model.depth, config.model.width) == (3, 32)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "def get_config(:",
        "get_config = 3",
        "def get_config(): pass",
        "def get_config(): return 3",
        "def get_config(): return 1 / 0",
        "def get_config(): raise KeyError",
        "import nowhere",
        "raise Exception('several\\nlines')",
        CHANGED_CONFIG.format("x = 3"),
        CHANGED_CONFIG.format("model = 3"),
        CHANGED_CONFIG.format("seed = 10**5000"),
        "import ml_collections as m\ndef get_config(): return m.ConfigDict({'model': {'x': 1}})",
        "\x00",
    ],
)
def test_config_files(code, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(code)
    error_of(lambda: start(f"--config={path}", "--workdir=x"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--workdir={tmp}/file/run"],
        ["--workdir={tmp}/nowhere", "--mode=replay"],
        ["--workdir=~nosuchuser/run", "--mode=sample"],
    ],
    ids=" ".join,
)
def test_in_a_process_of_its_own(arguments, tmp_path, data_dir):
    (tmp_path / "file").write_text("x")
    command = [sys.executable, "-m", "diffussm_jax.main", DIGITS]
    command.append(f"--config.data.data_dir={data_dir}")
    command += [argument.format(tmp=tmp_path) for argument in arguments]
    began = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert time.monotonic() - began < 5 * LIMIT  # compilation on a busy machine
    assert not [name for name in files_of(tmp_path) if "checkpoints" in name]
