"""Rules between the values of a config, which a type cannot say."""

import math

from diffussm_jax.config import parsing
from diffussm_jax.config.data_rules import check_data
from diffussm_jax.config.editing_rules import check_editing
from diffussm_jax.config.export_rules import check_export
from diffussm_jax.config.learning_rules import check_distillation, check_guidance
from diffussm_jax.config.parsing import require
from diffussm_jax.config.schema import Config
from diffussm_jax.config.size_rules import check_sizes
from diffussm_jax.config.sizes import pair

Number = int | float

# No average is wider than the plain mean of all steps, whose relative width is 0.289.
MAX_EMA_LENGTH = 0.25
MIN_WRAPPED_STEPS = 20  # by the table of docs/sizes.md
MAX_INTEGER = 2**31 - 1  # steps, seeds and indices are int32 on the devices

SAMPLERS = {
    "gaussian": ("ddpm", "ddim", "dpm_solver++", "heun"),
    "flow": ("euler", "heun", "euler_maruyama"),
    "mean_flow": ("euler",),
}

_MAY_BE_ZERO = {
    "seed",
    "diffusion.time_mean",
    "diffusion.adaptive_power",
    "diffusion.share_r_below_t",
    "guidance.start_step",
    "distill.output",
    "distill.features",
    "model.mlp_ratio",
    "data.num_classes",
    "data.cache_gb",
    "data.workers",
    "data.pad",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.weight_decay",
    "optimizer.ssm_lr_multiplier",
    "optimizer.betas",
    "training.num_steps",
    "training.ema_decay",
    "training.label_dropout",
    "sample.eta",
    "sample.seed",
    "sample.cfg_scale",
    "sample.cfg_interval",
    "sample.window_overlap",
    "sample.classes",
    "inspect.layers",
    "edit.strength",
    "edit.rectangle",
    "edit.classes",
    "edit.target",
}
_MAY_BE_NEGATIVE = {"diffusion.time_mean"}
_MAY_BE_EMPTY = {"training.ema_lengths"}
_MAY_BE_INFINITE = {"sample.cfg_interval", "guidance.max_noise"}
_ARE_BELOW_ONE = {
    "training.ema_decay",
    "training.label_dropout",
    "optimizer.betas",
    "sample.window_overlap",
}


def check(config: Config) -> None:
    """Check every rule.

    Raises:
        ConfigError: in one line that names the field to change.
    """
    _check_values(config)
    check_data(config)
    check_sizes(config)
    _check_model(config)
    _check_process(config)
    _check_sampling(config)
    _check_canvas(config)
    check_guidance(config)
    check_distillation(config)
    _check_schedule(config)
    _check_averages(config)
    _check_labels(config)
    _check_inspection(config)
    check_editing(config)
    check_export(config)
    demand = "be None where plan.search is False"
    is_searched = config.plan.search or config.plan.search_batch_sizes is None
    require(is_searched, "plan.search_batch_sizes", demand, config.plan.search_batch_sizes)


def _check_values(config: Config) -> None:
    """Check single values: numbers have their range, and texts and lists are not empty."""
    for path in parsing.field_names(Config):
        value = parsing.get_field(config, path)
        items = value if isinstance(value, tuple) else (value,)
        is_empty = (not items and path not in _MAY_BE_EMPTY) or "" in items
        require(not is_empty, path, "not be empty", value)
        for item in items:
            is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if is_number and not (path.startswith("mesh.") and item == -1):
                _check_number(path, item)


def _check_number(path: str, value: Number) -> None:
    fits = isinstance(value, float) or abs(value) <= MAX_INTEGER
    require(fits, path, f"be at most {MAX_INTEGER}")  # Python refuses to show some larger values
    may_be_zero, may_be_infinite = path in _MAY_BE_ZERO, path in _MAY_BE_INFINITE
    may_be_negative = path in _MAY_BE_NEGATIVE and value > -math.inf
    is_in_range = value > 0 or (value == 0 and may_be_zero) or may_be_negative
    is_finite = value != math.inf or may_be_infinite
    least = "at least 0" if may_be_zero else "positive"
    require(is_in_range and is_finite, path, f"be {least} and finite", value)
    require(value < 1 or path not in _ARE_BELOW_ONE, path, "be below 1", value)


def _check_model(config: Config) -> None:
    model = config.model
    divides, demand = 2 * model.width % model.m == 0, f"divide twice model.width = {model.width}"
    require(divides or model.name != "diffussm", "model.m", demand, model.m)
    divides = model.width % model.num_heads == 0
    demand = f"divide model.width = {model.width}"
    require(divides or model.name != "dit", "model.num_heads", demand, model.num_heads)
    is_dit, pattern = model.name == "dit", model.pattern
    demand = f"divide model.depth = {model.depth} by the number of its mixers"
    if model.levels is not None:
        demand = f"divide each stage of model.levels = {model.levels} by the number of its mixers"
    fits = all(blocks % len(pattern) == 0 for blocks in model.levels or (model.depth,))
    require(fits, "model.mixers", demand, pattern)
    demand = "be 'attention' for model.name = 'diffussm', whose mixer is its own"
    require(is_dit or model.mixer == "attention", "model.mixer", demand, model.mixer)
    demand = "be None for model.name = 'diffussm', and where model.mixer is given"
    is_free = is_dit and model.mixer == "attention"
    require(is_free or model.mixers is None, "model.mixers", demand, model.mixers)
    is_odd = model.kernel_size is None or model.kernel_size % 2 == 1
    require(is_odd, "model.kernel_size", "be odd", model.kernel_size)
    _check_levels(config)
    demand = "be one number for model.name = 'diffussm', which scans along rows alone"
    is_number = is_dit or not isinstance(model.dt_rate, tuple)
    require(is_number, "model.dt_rate", demand, model.dt_rate)
    is_fused, demand = model.stack_implementation == "pallas_tpu", "be None or xla for a DiT"
    require(not is_fused or model.name != "dit", "model.stack_implementation", demand)
    require(model.width % 4 == 0, "model.width", "be a multiple of 4", model.width)
    require(model.state_size % 2 == 0, "model.state_size", "be even", model.state_size)
    low, high = model.dt_range
    demand = "be (low, high) with 0 < low <= high"
    require(0 < low <= high, "model.dt_range", demand, model.dt_range)


def _check_levels(config: Config) -> None:
    model = config.model
    if model.levels is None:
        demand = "be 'narrow' where model.levels is None"
        require(model.last_stage == "narrow", "model.last_stage", demand, model.last_stage)
        return
    demand = "be None for model.name = 'diffussm', which is one stack"
    require(model.name == "dit", "model.levels", demand, model.levels)
    demand = "be an odd number of stages, at least 3: down, the middle one, and up again"
    num_stages = len(model.levels)
    require(num_stages % 2 == 1 and num_stages > 1, "model.levels", demand, model.levels)


def _check_process(config: Config) -> None:
    diffusion, process = config.diffusion, config.diffusion.process
    under = f"under diffusion.process = {process!r}"
    is_shifted = diffusion.time_sampling == "shifted"
    demand = "differ from 1 where diffusion.time_sampling is 'shifted', and there alone"
    fits = is_shifted == (diffusion.time_shift != 1)
    require(fits, "diffusion.time_shift", demand, diffusion.time_shift)
    is_gaussian = process == "gaussian"
    demand = f"be learned_range, fixed_small or fixed_large {under}"
    if not is_gaussian:
        demand = f"be 'none' {under}, whose reverse process has no variance"
    fits = is_gaussian == (diffusion.variance != "none")
    require(fits, "diffusion.variance", demand, diffusion.variance)
    if process == "mean_flow":
        demand = f"be 'v' {under}, which learns an average of the velocity"
        require(diffusion.prediction == "v", "diffusion.prediction", demand, diffusion.prediction)
        fits = diffusion.weighting != "min_snr"
        demand = f"be none or adaptive {under}"
        require(fits, "diffusion.weighting", demand, diffusion.weighting)
        demand = f"be None or xla {under}, whose loss takes a derivative in forward mode"
        stack = config.model.stack_implementation
        require(stack != "pallas_tpu", "model.stack_implementation", demand, stack)
        attention = config.model.attention_implementation
        require(attention != "flash", "model.attention_implementation", demand, attention)
        share = diffusion.share_r_below_t
        require(share <= 1, "diffusion.share_r_below_t", "be at most 1", share)


def _check_sampling(config: Config) -> None:
    sample, diffusion = config.sample, config.diffusion
    samplers = SAMPLERS[diffusion.process]
    demand = f"be {', '.join(samplers)} under diffusion.process = {diffusion.process!r}"
    require(sample.sampler in samplers, "sample.sampler", demand, sample.sampler)
    demand = f"be at most diffusion.num_steps = {diffusion.num_steps}"
    fits = diffusion.process != "gaussian" or sample.steps <= diffusion.num_steps
    require(fits, "sample.steps", demand, sample.steps)
    demand = "be ('latents',) alone, where data.space is latents, or name outputs of images"
    fits = "latents" not in sample.outputs or (
        sample.outputs == ("latents",) and config.data.space == "latents"
    )
    require(fits, "sample.outputs", demand, sample.outputs)
    demand = "not have 'classes' where data.num_classes is 0"
    fits = "classes" not in sample.outputs or config.data.num_classes > 0
    require(fits, "sample.outputs", demand, sample.outputs)
    is_guided, has_guide = sample.cfg_scale != 1, sample.autoguidance is not None
    can_be_guided = has_guide or config.data.num_classes > 0
    demand = "be 1 where data.num_classes is 0: guidance needs labels, or sample.autoguidance"
    require(can_be_guided or not is_guided, "sample.cfg_scale", demand)
    demand = "not be 1 where sample.autoguidance is given: it would do nothing"
    require(is_guided or not has_guide, "sample.cfg_scale", demand)
    demand = "be None under diffusion.process = 'mean_flow', whose steps begin at infinite noise"
    has_interval = sample.cfg_interval is not None
    fits = not has_interval or diffusion.process != "mean_flow"
    require(fits, "sample.cfg_interval", demand, sample.cfg_interval)
    low, high = sample.cfg_interval or (0, 1)
    demand = "be (low, high) with 0 <= low < high"
    require(0 <= low < high, "sample.cfg_interval", demand, sample.cfg_interval)


def _check_canvas(config: Config) -> None:
    sample = config.sample
    demand = "be None where sample.wrap and sample.image_size are: one window covers the image"
    is_larger = sample.wrap is not None or sample.image_size is not None
    is_free = is_larger or sample.window_overlap is None
    require(is_free, "sample.window_overlap", demand, sample.window_overlap)
    drawn = pair(sample.image_size or config.data.image_size)
    fits = all(new >= old for new, old in zip(drawn, config.data.sides, strict=True))
    demand = f"hold a window of data.image_size = {config.data.image_size}"
    is_free = fits or sample.window_overlap is None
    require(is_free, "sample.image_size", demand, sample.image_size)
    demand = (
        f"be at least {MIN_WRAPPED_STEPS} where sample.wrap is given: each step moves the place "
        "where the model sees an edge, and a few leave a trace of it"
    )
    is_enough = sample.wrap is None or sample.steps >= MIN_WRAPPED_STEPS
    require(is_enough, "sample.steps", demand, sample.steps)
    demand = "be None where inspect.distance is True, whose images have edges"
    is_free = sample.wrap is None or not config.inspect.distance
    require(is_free, "sample.wrap", demand, sample.wrap)


def _check_schedule(config: Config) -> None:
    optimizer, num_steps = config.optimizer, config.training.num_steps
    has_decay = optimizer.schedule == "warmup_stable_decay"
    demand = "be positive where optimizer.schedule is 'warmup_stable_decay', and 0 elsewhere"
    is_given = optimizer.decay_steps > 0
    require(is_given == has_decay, "optimizer.decay_steps", demand, optimizer.decay_steps)
    demand = f"be at most training.num_steps - optimizer.decay_steps = {num_steps}"
    if has_decay:
        demand += f" - {optimizer.decay_steps}"
    fits = optimizer.warmup_steps + optimizer.decay_steps <= num_steps
    is_free = optimizer.schedule == "constant"
    require(fits or is_free, "optimizer.warmup_steps", demand, optimizer.warmup_steps)


def _check_averages(config: Config) -> None:
    lengths, sample = config.training.ema_lengths, config.sample
    demand = f"be above 0 and at most {MAX_EMA_LENGTH}, of the whole run"
    for length in lengths:
        require(0 < length <= MAX_EMA_LENGTH, "training.ema_lengths", demand, length)
    if sample.ema_length is not None:
        fits = 0 < sample.ema_length <= MAX_EMA_LENGTH
        require(fits, "sample.ema_length", demand, sample.ema_length)
    is_unique = len(set(lengths)) == len(lengths)
    require(is_unique, "training.ema_lengths", "differ from each other", lengths)
    is_ema = sample.ema or sample.ema_length is None
    require(is_ema, "sample.ema", "be True where sample.ema_length is given")


def _check_labels(config: Config) -> None:
    labels, classes = config.sample.labels, config.sample.classes
    demand = "be 'list' where sample.classes is given, and there alone"
    require((labels == "list") == (classes is not None), "sample.labels", demand, labels, classes)
    num_classes = config.data.num_classes
    is_below = all(y < num_classes for y in classes or ())
    require(is_below, "sample.classes", f"be below data.num_classes = {num_classes}", classes)


def _check_inspection(config: Config) -> None:
    inspect, num_layers = config.inspect, config.model.num_layers
    is_below = all(layer < num_layers for layer in inspect.layers or ())
    field = "model.depth" if config.model.levels is None else "the blocks of model.levels"
    demand = f"be below {field} = {num_layers}: the first layer is 0"
    require(is_below, "inspect.layers", demand, inspect.layers)
    require(inspect.window % 2 == 1, "inspect.window", "be odd", inspect.window)
    demand = "be True where inspect.distance is"
    require(inspect.perturb or not inspect.distance, "inspect.perturb", demand)
    demand = "be None where inspect.distance is True, which perturbs the model as it was trained"
    is_trained = config.sample.image_size is None
    require(is_trained or not inspect.distance, "sample.image_size", demand)
