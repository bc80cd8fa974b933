"""Every mesh on every slice that Google rents: it is made, and what it splits has its price."""

import importlib.util
import itertools

import pytest

from diffussm_jax import plan as plan_lib
from diffussm_jax.config import MeshConfig
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.chips import chip_of
from diffussm_jax.planning.estimate import chip_and_mesh
from diffussm_jax.planning.plans import Memory, Plan
from diffussm_jax.planning.split_axes import split_axes
from tests.conftest import merge

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux"),
]
FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
SOLID = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 4x4x12 4x4x16 8x8x8"
TOPOLOGIES = {"v5e": FLAT, "v6e": FLAT, "v4": SOLID, "v5p": SOLID, "tpu7x": SOLID}
SLICES = [
    pytest.param(kind, n, marks=() if (kind, n) in {("v6e", 1), ("v5p", 1)} else pytest.mark.slow)
    for kind in TOPOLOGIES
    for n in (1, 2)
]


@pytest.mark.parametrize(("kind", "num_slices"), SLICES)
def test_every_mesh_that_fills_a_rented_slice_is_made(kind, num_slices):
    for shape in TOPOLOGIES[kind].split():
        devices = tpu_compiler.devices(f"{kind}:{shape}", num_slices=num_slices)
        size = len(devices) // num_slices
        pairs = itertools.product(range(1, size + 1), (1, 2, 4, 8, 16))
        for fsdp, sequence in ((x, y) for x, y in pairs if size % (x * y) == 0):
            mesh = make_mesh(MeshConfig(fsdp=fsdp, sequence=sequence), devices)
            assert mesh.devices.shape == (len(devices) // fsdp // sequence, fsdp, sequence)
            assert set(mesh.devices.flat) == set(devices), (shape, fsdp, sequence)
            if num_slices == 2:  # only data goes between slices
                first, second = mesh.devices.reshape(2, -1)
                assert {x.slice_index for x in first}.isdisjoint(x.slice_index for x in second)
            if sequence == num_slices == 1:
                split = split_axes(mesh, chip_of(devices[0]))
                assert split is None or min(split.slowdown.values()) >= 1


def test_a_mesh_of_whole_axes_splits_nothing():
    for kind, shape, fsdp in [("v6e", "4x4", 16), ("v5e", "16x16", 16), ("v5p", "4x4x8", 32)]:
        assert of(f"{kind}:{shape}", fsdp=fsdp) is None


MEMORY = Memory(32.0, 1.0, 1.0, 1.0)

# What lines, rings and shared links are worth is counted by hand.
COSTS = {
    # fsdp: lines of 8, and pairs, which are lines too. data: every other chip of a line of 8.
    ("v6e:8x8", 16, 1): {"data": 2, "fsdp": 1},
    # fsdp: rings of 16 have 2 links a chip, pairs 1: 3 of 4. data: every other chip of a ring.
    ("v5e:16x16", 32, 1): {"data": 2, "fsdp": 4 / 3},
    # fsdp: two rings of 4 and pairs: 5 of 6 links. data: every other chip of a ring.
    ("v5p:4x4x4", 32, 1): {"data": 2, "fsdp": 6 / 5},
    # 32 chips are no cube, and have no rings.
    ("v4:2x4x4", 2, 8): {"data": 2, "fsdp": 1, "sequence": 1},
    # fsdp: pairs along both axes. data: every other chip of both; sequence: a half of one.
    ("v6e:8x8", 4, 4): {"data": 2, "fsdp": 8 / 5, "sequence": 1},
}


@pytest.mark.parametrize("num_slices", [1, 2])
@pytest.mark.parametrize("case", COSTS, ids=str)
def test_what_a_split_costs(case, num_slices):
    """Several slices split as one does."""
    topology, fsdp, sequence = case
    split = of(topology, fsdp=fsdp, sequence=sequence, num_slices=num_slices)
    assert split.slowdown == pytest.approx(COSTS[case])
    assert all(
        of(topology, fsdp=size, sequence=sequence, num_slices=num_slices) is None
        for size in split.unsplit_fsdp
    )


def of(topology, *, fsdp, sequence=1, num_slices=1):
    devices = tpu_compiler.devices(topology, num_slices=num_slices)
    mesh = make_mesh(MeshConfig(fsdp=fsdp, sequence=sequence), devices)
    return split_axes(mesh, chip_of(devices[0]))


def test_a_plan_says_what_a_split_costs_and_what_splits_nothing(tiny_config):
    config = merge(tiny_config, {"mesh": {"fsdp": 16}, "training": {"batch_size": 64}})
    chip, mesh = chip_and_mesh(config, "v6e:8x8")
    split = split_axes(mesh, chip)
    plan = Plan("v6e:8x8", 64, dict(mesh.shape), 1, 64, "none", 1, 1, MEMORY, split_axes=split)
    text = plan_lib.report(plan)
    assert "splits an axis of the 8x8 chips: data takes 1x4, fsdp takes 8x2" in text
    assert "times as long for collectives as on whole axes: 2 over data\n" in text
    assert "config.mesh.fsdp=8 or 64 splits none" in text
    assert plan.to_dict()["split_axes"]["slowdown"] == {"data": 2, "fsdp": 1}


def test_a_topology_that_is_refused_is_refused_before_the_others_are_compiled(tiny_config):
    config = merge(tiny_config, {"plan": {"topologies": ("v5e:2x2", "v6e:3x3")}})
    with pytest.raises(UserError, match="must be of TPUs, .*got 'v6e:3x3'"):
        plan_lib.plan(config, None)


def test_smaller_configs_on_several_slices_keep_data_between_them(tiny_config, monkeypatch):
    """What does not fit is tried on meshes that the slices take."""
    tried = []

    def misfit(config, topology):
        _, mesh = chip_and_mesh(config, topology)
        tried.append(dict(mesh.shape))
        return Plan(topology, mesh.size, tried[-1], 1, 64, "none", 1, 1, MEMORY)

    monkeypatch.setattr(plan_lib, "estimate", misfit)
    monkeypatch.setattr(plan_lib, "estimate_sampler", lambda *_: None)
    config = merge(tiny_config, {"plan": {"num_slices": 2}, "training": {"batch_size": 64}})
    plan_lib.make_plan(config, "v6e:4x4")
    assert tried[-1] == {"data": 2, "fsdp": 16, "sequence": 1}
