"""Plans of students: every argument is checked before the first one, and no stale plan is kept."""

import dataclasses
import json

import pytest

from benchmarks import plan_store, student_plans
from diffussm_jax.config import Config
from diffussm_jax.errors import UserError


@pytest.mark.parametrize(
    ("topology", "pixels", "mixer", "words"),
    [
        ("h100:9", 256, "s4d", "--topologies h100:9.*h100:1 to h100:8"),
        ("v5e", 256, "s4d", "--topologies v5e.*config.plan.topology must be"),
        ("h100:1", 100, "s4d", "--pixels 100 must be a multiple of 16"),
        ("h100:1", 0, "s4d", "--pixels 0 must be"),
        ("h100:1", 2048, "s4d", "--pixels 2048 has more latents"),
        ("h100:1", 256, "s4", "--mixers s4 must be one of s4d, delta_conv, convnext"),
    ],
)
def test_an_argument_is_refused_by_name(topology, pixels, mixer, words):
    with pytest.raises(UserError, match=words) as refusal:
        student_plans.check(topology, pixels, mixer)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mixer", ["attention", "s4d", "convnext"])
def test_a_larger_image_comes_in_a_smaller_batch(mixer):
    config = student_plans.subject(mixer, "v5e:4x4", 512)
    assert (config.training.batch_size, config.num_tokens) == (64, 1024)
    assert config.training.teacher is None
    assert config.model.mixer == mixer


def test_a_plan_is_kept_until_its_config_or_its_compiler_changes(tmp_path, monkeypatch):
    store, config, made = tmp_path / "kept" / "plans.json", Config(), []
    versions = {"jax": "1.0", "libtpu": "2.0"}
    monkeypatch.setattr(plan_store, "version", versions.get)

    def plan(name="a", config=config, topology="v5e:4x4"):
        made.append(name)
        return plan_store.kept_plan(store, name, config, topology, lambda: {"plan": len(made)})

    other = dataclasses.replace(config, model=dataclasses.replace(config.model, depth=3))
    assert [plan(), plan(), plan("b"), plan(config=other), plan(topology="h100:1")] == [
        {"plan": n} for n in (1, 1, 3, 4, 5)
    ]
    versions["libtpu"] = "2.1"
    assert [plan(), plan(topology="h100:1")] == [{"plan": 6}, {"plan": 5}]
    kept = json.loads(store.read_text())
    assert len(kept) == 5
    assert sum("v5e:4x4" in key and "libtpu 2.0" in key for key in kept) == 3
