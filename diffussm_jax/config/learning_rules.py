"""Rules of what is learned besides the data: folded guidance, and a teacher's output."""

import dataclasses

from diffussm_jax.config.parsing import require
from diffussm_jax.config.schema import Config


def check_guidance(config: Config) -> None:
    """Check guidance that is folded into the model."""
    guidance, sample = config.guidance, config.sample
    if not guidance.is_folded:
        return
    field = "guidance.scale" if guidance.max_scale is None else "guidance.max_scale"
    demand = (
        "be left out where data.num_classes or training.label_dropout is 0: guidance leads away "
        "from the prediction without a label"
    )
    has_labels = config.data.num_classes > 0 and config.training.label_dropout > 0
    require(has_labels, field, demand)
    if guidance.max_scale is None:
        require(guidance.scale >= 1, "guidance.scale", "be at least 1", guidance.scale)
        demand = "be 1 where guidance.scale is given: the model is guided by itself"
        is_once = sample.cfg_scale == 1 or sample.autoguidance is not None
        require(is_once, "sample.cfg_scale", demand, sample.cfg_scale)
        return
    demand = "be 1 where guidance.max_scale is given: the scale is then an input of the model"
    require(guidance.scale == 1, "guidance.scale", demand, guidance.scale)
    require(guidance.max_scale > 1, "guidance.max_scale", "be above 1", guidance.max_scale)
    demand = "be None where guidance.max_scale is given: that model needs no worse one"
    require(sample.autoguidance is None, "sample.autoguidance", demand)
    demand = f"be between 1 and guidance.max_scale = {guidance.max_scale}, which were trained"
    fits = 1 <= sample.cfg_scale <= guidance.max_scale
    require(fits, "sample.cfg_scale", demand, sample.cfg_scale)
    demand = "be None where guidance.max_scale is given: that model guides all channels"
    require(sample.cfg_channels is None, "sample.cfg_channels", demand, sample.cfg_channels)


def check_distillation(config: Config) -> None:
    """Check what a student learns from its teacher."""
    distill, model = config.distill, config.model
    demand = "be None where distill.train is 'all'"
    is_free = distill.train == "mixers" or distill.all_after is None
    require(is_free, "distill.all_after", demand, distill.all_after)
    if config.training.teacher is None:
        return
    demand = "be None under diffusion.process = 'mean_flow', whose loss takes the network's tangent"
    require(config.diffusion.process != "mean_flow", "training.teacher", demand)
    blocks, num_layers = distill.blocks or (), model.num_layers
    demand = f"be different numbers up to {num_layers}, the number of blocks"
    fits = len(set(blocks)) == len(blocks) and max(blocks, default=1) <= num_layers
    require(fits, "distill.blocks", demand, blocks)
    demand = "be None or xla where distill.features is given: fused blocks show no streams"
    is_free = not distill.features or model.stack_implementation != "pallas_tpu"
    require(is_free, "model.stack_implementation", demand)
    demand = "be 'all' for model.name = 'diffussm', whose block is its mixer"
    is_free = distill.train == "all" or model.name == "dit"
    require(is_free, "distill.train", demand, distill.train)


def check_distillation_has_effect(config: Config) -> None:
    """Check that what fields of `distill` say has an effect on the run that is to begin.

    Other modes have no such rule: an export keeps the fields of its run, and no teacher's folder.

    Raises:
        ConfigError: in one line that names the field to change.
    """
    distill = config.distill
    why = "where distill.features is 0: streams are not compared"
    is_free = distill.features > 0 or distill.blocks is None
    require(is_free, "distill.blocks", f"be None {why}", distill.blocks)
    is_free = distill.features > 0 or not distill.teacher_forcing
    require(is_free, "distill.teacher_forcing", f"be False {why}")
    if config.training.teacher is not None:
        return
    for field in dataclasses.fields(config.distill):
        value = getattr(config.distill, field.name)
        demand = f"be {field.default!r} where training.teacher is None"
        require(value == field.default, f"distill.{field.name}", demand, value)
