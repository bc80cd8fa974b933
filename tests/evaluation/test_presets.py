"""Presets of evaluation: how images are drawn for a score."""

import dataclasses
import typing

import pytest

from diffussm_jax.config import EvaluateConfig
from diffussm_jax.errors import UserError
from diffussm_jax.evaluation.presets import PRESETS, sample_options
from tests.conftest import merge


def test_presets_are_those_of_the_config(scored_values):
    hint = typing.get_type_hints(EvaluateConfig)["preset"]
    names = typing.get_args(typing.get_args(hint)[0])
    assert set(PRESETS) == set(names)
    for name in PRESETS:
        changes = {"evaluate": {"preset": name}, "diffusion": {"num_steps": 1000}}
        config = merge(scored_values, changes)
        options = sample_options(config)
        assert dataclasses.asdict(options).items() >= PRESETS[name].items()
        assert options.batch_size == config.sample.batch_size
    unconditional = merge(
        scored_values, changes | {"data": {"num_classes": 0}, "evaluate": {"preset": "dit_guided"}}
    )
    with pytest.raises(UserError, match="cfg_scale must be 1"):
        sample_options(unconditional)


def test_a_flow_has_a_fast_preset_and_none_of_the_papers(scored_values):
    flow = {"process": "flow", "prediction": "v", "variance": "none"}
    changes = {"diffusion": flow, "sample": {"sampler": "euler"}, "evaluate": {"preset": "fast"}}
    options = sample_options(merge(scored_values, changes))
    assert (options.sampler, options.steps, options.num) == ("heun", 13, 10_000)
    papers = merge(scored_values, changes | {"evaluate": {"preset": "paper"}})
    with pytest.raises(UserError, match="config.evaluate.preset = 'paper' samples DDPM's process"):
        sample_options(papers)
