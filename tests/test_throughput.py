"""The comparison with attention: what is compared is what it says, and every column is filled."""

import dataclasses
import json

import pytest

from benchmarks import student_plans
from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import gpu, host, subjects
from diffussm_jax.planning.multiply_adds import multiply_adds


def tiny(side=4):
    return subjects.on_host(
        side, depth=3, width=16, batch_size=2, steps=2, dtype="float32", state_size=8
    )


def test_equal_tokens_and_equal_work():
    models = subjects.on_host(
        16, depth=9, width=192, batch_size=8, steps=2, dtype="float32", state_size=64
    )
    work = {name: multiply_adds(config).without_ssm for name, config in models.items()}
    layer = work[subjects.SAME_TOKENS] / models[subjects.SAME_TOKENS].model.depth
    assert abs(work[subjects.SAME_FLOPS] - work[subjects.DIFFUSSM]) < layer / 2
    tokens = [host.new_row(name, config).tokens for name, config in models.items()]
    assert tokens == [256, 256, 256, 64]
    assert models[subjects.SAME_TOKENS].model.depth == 8


@pytest.mark.slow
def test_published_sizes():
    """And where they cross: DiffuSSM takes less than patches of 2 beyond some 47,000 latents."""
    models = subjects.extra_large()
    depths = [config.model.depth for config in models.values()]
    assert depths == [29, 28, 16, 28]
    rows = throughput.counts()
    less = [row["latents"] for row in rows if row[subjects.DIFFUSSM] < row[subjects.PATCHES]]
    assert less == [65536]
    assert all(row[subjects.DIFFUSSM] < row[subjects.SAME_TOKENS] for row in rows)


@pytest.mark.slow
def test_a_row_is_filled_or_says_what_it_would_need(tmp_path):
    name = subjects.PATCHES
    config = tiny()[name]
    (row,) = host.measure({name: config}, rounds=1, max_gib=1, clock="process")
    assert row.training_mfu == pytest.approx(
        6e9 * row.giga_multiply_adds * row.training / host.peak_flops("float32", "process")
    )
    assert row.sampling > 0
    (refused,) = host.measure({name: config}, rounds=1, max_gib=0, clock="wall")
    assert (refused.training, refused.training_gib) == (None, row.training_gib)
    assert "| DiT/2 | 2 | 4 |" in throughput.table([vars(row)])
    throughput.plot([row], tmp_path / "throughput.png")
    assert (tmp_path / "throughput.png").stat().st_size > 1000


def test_ratios_and_growth():
    rows = [
        host.Row(subjects.DIFFUSSM, 2, 256, 1, 1, training=8.0, sampling=8.0),
        host.Row(subjects.DIFFUSSM, 2, 1024, 1, 1, training=2.0, sampling=2.0),
        host.Row(subjects.SAME_TOKENS, 2, 256, 1, 1, training=4.0, sampling=16.0),
    ]
    assert "0.50 times DiffuSSM's training images/s, 2.00 times" in throughput.ratios(rows[::2])
    assert "DiffuSSM, training: 256 to 1024 tokens as l^1.00" in throughput.growth(rows)


def test_students_of_a_gpu_see_as_many_latents_at_each_size():
    """As their plans do, which they are compared with."""
    models = subjects.students_on_gpu()
    assert list(models)[:2] == ["attention-256", "s4d-256"] and len(models) == 12
    for name, config in models.items():
        mixer, pixels = name.split("-")
        planned = student_plans.subject(mixer, "h100:1", int(pixels))
        assert dataclasses.replace(config, sample=planned.sample) == planned
        assert config.training.batch_size * config.num_tokens == 32 * 256
        assert config.sample.num == config.training.batch_size


@pytest.mark.slow
def test_figures_of_a_gpu(tmp_path):
    """Of any backend; the same model is trained and then sampled from."""
    models = {"DiT": tiny()[subjects.PATCHES]}
    rows = gpu.report(models, tmp_path, budget_s=600, rounds=1, shapes=((1, 16, 4),), peak_side=32)
    assert [row["measured"] for row in rows] == [
        "peak",
        "chunked, (1, 16, 4)",
        "fft, (1, 16, 4)",
        "DiT, training",
        "DiT, sampling",
        "associative_scan, (1, 16, 4)",
    ]
    assert not [row for row in rows if "failed" in row]
    assert max(row["error"] for row in rows if "error" in row) < 2e-5
    training = rows[3]
    work = 6e-9 * multiply_adds(models["DiT"]).without_ssm * training["images/s"]
    assert training["tflops"] == pytest.approx(work / 1e3)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == rows


@pytest.mark.slow
def test_what_a_gpu_does_not_reach_or_fails_at_leaves_the_rest(tmp_path, monkeypatch):
    def fail(side, rounds):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    monkeypatch.setattr(gpu, "_peak", fail)
    rows = gpu.report({}, tmp_path, budget_s=60, rounds=1, shapes=())
    assert rows[0]["failed"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    rows = gpu.report({"DiT": tiny()[subjects.PATCHES]}, tmp_path, budget_s=0)
    assert {row["failed"] for row in rows} == {"not reached"}
    assert "| DiT, training |" in (tmp_path / "gpu.md").read_text()
