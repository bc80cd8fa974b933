"""What a machine gives to JAX: it works, or one line names the environment variable."""

import logging

import jax
import pytest

from diffussm_jax.errors import UserError
from diffussm_jax.parallel import settings
from diffussm_jax.parallel.settings import find_devices, start_jax
from tests import jobs


@pytest.fixture
def set_jax():
    """Set one of JAX's settings for a test."""
    saved = {}

    def set_to(name, value):
        saved[name] = getattr(jax.config, name)
        jax.config.update(name, value)

    yield set_to
    for name, value in saved.items():
        jax.config.update(name, getattr(value, "value", value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_transfer_guard", "disallow"),
    ],
)
def test_settings_that_change_a_run_are_refused(name, value, set_jax):
    start_jax()
    set_jax(name, value)
    with pytest.raises(UserError, match=f"^{name.upper()} must be .* got {value}"):
        start_jax()


def test_settings_that_only_log_and_those_that_a_later_jax_drops_are_allowed(set_jax, monkeypatch):
    set_jax("jax_transfer_guard", "log_explicit")
    monkeypatch.setitem(settings._NEEDED, "jax_dropped_setting", (True,))
    assert start_jax() == jax.devices()


def test_settings_that_change_bits_are_told(set_jax, caplog):
    set_jax("jax_default_matmul_precision", "highest")
    with caplog.at_level(logging.INFO):
        assert start_jax() == jax.devices()
    assert caplog.messages == ["JAX_DEFAULT_MATMUL_PRECISION is highest, which changes the program"]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend\nin two lines")])
def test_a_platform_that_is_missing_is_named(error, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="no device with JAX_PLATFORMS=cuda(: no backend)?$"):
        find_devices()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "flops"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PLATFORMS", "cuda"),
        ("JAX_PLATFORMS", "nonsense"),
        ("JAX_PLATFORM_NAME", "gpu"),
        ("JAX_ENABLE_X64", "1"),
        ("JAX_ENABLE_X64", "maybe"),
        ("JAX_NUM_CPU_DEVICES", "x"),
        ("XLA_FLAGS", "--xla_nonsense=1"),
    ],
)
def test_a_variable_that_cannot_work_is_named_in_one_line(mode, name, value, tmp_path, data_dir):
    words = [*jobs.command(tmp_path / "run", data_dir), f"--mode={mode}"]
    result = jobs.run(words, **{name: value})
    assert result.returncode in (1, 2)  # 1: XLA's own
    assert "Traceback" not in result.stderr
    assert name in result.stderr.splitlines()[-1].upper()
    assert not (tmp_path / "run").exists()
