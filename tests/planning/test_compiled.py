"""What the compiler says of a program is kept, by what decides it."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from diffussm_jax.parallel.mesh import make_mesh, replicated
from diffussm_jax.planning import compiled, tpu_compiler
from diffussm_jax.planning.chips import chip_of
from diffussm_jax.planning.compiled import Compiled, compile_program
from diffussm_jax.planning.plans import CycleBudget, KernelUse

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]


def figures_of(topology, side=256):
    """The figures of a product of square matrices that every chip of a topology makes."""
    devices = tpu_compiler.devices(topology)
    mesh = make_mesh(devices=devices)
    x = jax.ShapeDtypeStruct((side, side), jnp.float32, sharding=replicated(mesh))
    product = jax.jit(lambda x: x @ x)
    return compile_program(product, (x,), topology, mesh, chip_of(devices[0]), batch_size=1)


@pytest.mark.slow
def test_a_program_compiles_once(tmp_path, monkeypatch, caplog):
    """Until the slice, the compiler or the code that reads is another; damage costs time."""
    programs, compile_lowered = [], tpu_compiler.compile_lowered

    def compile_(lowered):
        programs.append(lowered)
        return compile_lowered(lowered)

    monkeypatch.setattr(tpu_compiler, "compile_lowered", compile_)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = figures_of("v5e:2x2")
    assert first.cycles.hbm_gb == pytest.approx(2 * 256 * 256 * 4 / 1e9)
    assert figures_of("v5e:2x2") == first
    assert len(programs) == 1
    assert figures_of("v5e:2x4").total_gib == first.total_gib
    assert len(programs) == 2
    monkeypatch.setattr(compiled, "_readers", lambda: "another")
    figures_of("v5e:2x2")
    assert len(programs) == 3
    for path in (tmp_path / "diffussm_jax" / "programs").iterdir():
        path.write_text("{")
    assert figures_of("v5e:2x2").cycles == first.cycles
    assert len(programs) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert figures_of("v5e:2x2").cycles == first.cycles
    assert "not kept" in caplog.text


def test_a_refusal_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    refused = figures_of("v5e:2x2", side=2**16)
    assert refused.needed_gib >= 2 * 16
    assert refused.cycles is None
    monkeypatch.setattr(tpu_compiler, "compile_lowered", lambda _: pytest.fail("compiled again"))
    assert figures_of("v5e:2x2", side=2**16) == refused


def test_kernels_are_kept_too(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels = KernelUse("up", 3, 2.5, 0.5), KernelUse("down", 1, 0.5, 0.1)
    figures = Compiled(1.0, None, 2.0, 3.0, CycleBudget(5.0, 1.0, 1.0, kernels, 7.0), {"x": 1.0})
    monkeypatch.setattr(compiled, "_compile", lambda *_: figures)
    assert figures_of("v5e:2x2") is figures
    assert figures_of("v5e:2x2") == figures
