"""The cards' table and the topologies that name them; no compiler is needed."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.errors import UserError
from diffussm_jax.planning import gpu_compiler
from diffussm_jax.planning.gpus import GPUS, is_gpus, read_topology


def test_a_topology_is_a_card_and_how_many():
    assert read_topology("a100-40:2") == (GPUS["a100-40"], 2)
    assert is_gpus("h100:8")
    assert is_gpus("h100")
    assert not is_gpus("v5e:2x2")


@pytest.mark.parametrize("topology", ["h100", "h100:", "h100:0", "h100:2x2", "h100:16"])
def test_the_number_of_cards_is_that_of_one_host(topology):
    with pytest.raises(UserError, match=f"h100:1 to h100:8, got '{topology}'"):
        read_topology(topology)


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_a_published_peak_is_cores_times_clock(gpu):
    """Within a fifth: a core multiplies a power of two a cycle, and clocks differ by load."""
    each = gpu.peak_flops / (gpu.num_cores * gpu.clock_ghz * 1e9)
    power = min((512, 1024, 2048, 4096), key=lambda x: abs(x - each))
    assert each == pytest.approx(power, rel=0.2)


def test_jax_takes_the_part_that_the_environment_says(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    t4 = GPUS["t4"]
    assert t4.usable_bytes == t4.memory_bytes * 3 // 4
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    assert t4.usable_bytes == t4.memory_bytes // 2
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "all")
    with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION must be .* got 'all'"):
        assert t4.usable_bytes


def test_without_the_plugin_its_installation_is_named(monkeypatch):
    monkeypatch.setattr(gpu_compiler, "has_cuda_plugin", lambda: False)
    gpu_compiler.devices.cache_clear()
    with pytest.raises(UserError, match="`make plan-gpu` makes"):
        gpu_compiler.devices("h100:1")


def test_a_program_whose_products_fit_no_tile_of_triton_takes_cublas(monkeypatch):
    """The compiler's refusal of DiT-XL/2 at a batch of 64; any other error is raised."""
    monkeypatch.setattr(gpu_compiler, "cuda_as_compiler", contextlib.nullcontext)

    refusal = "INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.59"

    def refuse(lowered, compiler_options=None):
        if compiler_options is None:
            raise jax.errors.JaxRuntimeError(refusal)
        return compiler_options

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    program = jax.jit(jnp.sin).lower(1.0)
    expected = {"xla_gpu_enable_triton_gemm": False}
    assert gpu_compiler.compile_lowered(program) == expected
    refusal = "RESOURCE_EXHAUSTED: out of memory"
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        gpu_compiler.compile_lowered(program)
