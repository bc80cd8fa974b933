"""The benchmark of the operator measures what it says."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import configs.textures
import diffussm_jax
from benchmarks import residual, sampling, tiles, verification
from benchmarks.ssm import __main__ as ssm
from benchmarks.ssm import host
from diffussm_jax.config import from_dict
from diffussm_jax.train import train
from examples import textures
from tests.ops.s4d_reference import error, make_input, make_ssm, recurrence


def test_the_float64_reference_is_the_recurrence():
    ssm, u = make_ssm(2, 3, 4), make_input(2, 50, 3)
    expected = recurrence(u, ssm, (False, True))[0]
    assert error(host.convolution(np.asarray(u), ssm), expected) < 1e-12


@pytest.mark.slow
def test_a_table_a_file_and_a_plot(tmp_path, monkeypatch, capsys):
    options = ["--lengths", "8", "16", "--width=4", "--batch=1", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["ssm", *options, "--repeats=3"])
    ssm.main()
    rows = json.loads((tmp_path / "ssm.json").read_text())["rows"]
    assert [row["implementation"] for row in rows] == 2 * list(host.IMPLEMENTATIONS)
    assert all(row["error"] < 2e-5 and row["both_ms"] > 0 for row in rows)
    assert (tmp_path / "ssm.png").stat().st_size > 1000
    assert "fft / chunked" in capsys.readouterr().out


def test_errors_of_precisions(trained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["residual", str(trained), "--images=2"])
    residual.main()
    title, growth, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "2 blocks of width 16, 64 tokens"
    assert growth.startswith("the stream's RMS grows 1.")
    assert [row.split()[:2] for row in rows] == [["bfloat16", "bfloat16"], ["bfloat16", "float32"]]
    errors = np.array([row.split()[2:] for row in rows], float)
    assert ((errors > 1e-4) & (errors < 0.05)).all()
    assert errors[1, 0] < errors[0, 0]


@pytest.mark.slow
def test_differences_of_what_draws(trained, exported):
    lines = {line[:25].strip(): line.split() for line in verification.rows(exported, trained)}
    assert lines["the same"][-3:] == lines["the EMA of step 6"][-3:] == ["0", "0", "levels"]
    assert float(lines["another seed"][-3]) > 5
    assert 0 < float(lines["raw weights"][-3]) < float(lines["another seed"][-3])


def test_figures_of_samplers(trained):
    model = diffussm_jax.load(trained)
    cost = sampling.guidance_cost(model, batch=2, steps=2, repeats=1)
    assert cost["guided_step_ms"] > 0
    assert cost["plain_call_ms"] > 0
    real = sampling.real_moments()
    assert sampling.frechet_distance(real, real) < 1e-6
    images = model.sample(num=70, batch_size=70, steps=4)
    assert sampling.frechet_distance(sampling.moments(images), real) > 10


@pytest.mark.slow
@pytest.mark.nightly
def test_the_table_and_the_pictures_of_tiles(tmp_path, monkeypatch, capsys):
    """By the commands of docs/sizes.md, on a model that has hardly begun."""
    monkeypatch.chdir(tmp_path)
    textures.main(Path("runs/textures"), num=20)
    config = configs.textures.get_config()
    config.model.update({"depth": 1, "width": 16, "state_size": 4})
    config.training.num_steps = config.training.sample_every = 1
    train(from_dict(config.to_dict()), Path("runs/textures/run"))
    monkeypatch.setattr(tiles, "NUM", 32)
    tiles.main(Path("runs/textures/run"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (8 + 4)
    assert all(re.search(r"seam [.\d]+ [.\d]+ worst [.\d]+ inside", line) for line in lines)
    for name in ("tiles.png", "strips.png"):
        assert Path("runs/textures/run", name).stat().st_size > 1000
