"""Rules of a config that a type cannot say."""

from diffussm_jax.config import parsing
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.config.schema import Config

MAX_EMA_LENGTH = 0.25  # that of gamma = 0, the plain mean of all steps, is 0.289

Number = int | float

_MAY_BE_ZERO = {
    "seed",
    "data.num_classes",
    "data.workers",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.ssm_lr_multiplier",
    "training.num_steps",
    "training.ema_decay",
    "training.label_dropout",
    "sample.eta",
    "sample.seed",
    "sample.cfg_scale",
    "sample.cfg_interval",
    "sample.classes",
    "optimizer.betas",
}
_MAY_BE_EMPTY = {"training.ema_lengths"}
_MAY_BE_INFINITE = {"sample.cfg_interval"}
_SHARES = {"training.ema_decay", "training.label_dropout", "optimizer.betas"}
MAX_INTEGER = 2**31 - 1  # steps, seeds and indices are int32 on the devices


def check(config: Config) -> None:
    """Raise ConfigError where fields contradict each other; it ends by naming the field to change."""
    model, data, sample = config.model, config.data, config.sample
    _check_values(config)
    height, width, _ = config.grid
    factor = config.autoencoder.factor
    if data.space == "latents" and data.image_size % factor:
        raise ConfigError(
            f"config.data.image_size must be a multiple of autoencoder.factor = {factor}, got {data.image_size}"
        )
    if height % model.patch_size:
        raise ConfigError(
            f"config.model.patch_size must divide the grid's side {height}, got {model.patch_size}"
        )
    if data.space == "pixels" and data.channels not in (1, 3):
        raise ConfigError(f"config.data.channels must be 1 (grey) or 3 (RGB), got {data.channels}")
    num_tokens = config.num_tokens
    groups = num_tokens % model.m == 0 and 2 * model.width % model.m == 0
    if model.name == "diffussm" and not groups:
        raise ConfigError(
            f"config.model.m must divide the {num_tokens} tokens of a {height} x {width} grid and twice "
            f"model.width = {model.width}, got {model.m}"
        )
    if model.name == "dit" and model.width % model.num_heads:
        raise ConfigError(
            f"config.model.num_heads must divide model.width = {model.width}, got {model.num_heads}"
        )
    if model.width % 4:
        raise ConfigError(f"config.model.width must be a multiple of 4, got {model.width}")
    if model.state_size % 2:
        raise ConfigError(f"config.model.state_size must be even, got {model.state_size}")
    if not 0 < model.dt_range[0] <= model.dt_range[1]:
        raise ConfigError(
            f"config.model.dt_range must be (low, high) with 0 < low <= high, got {model.dt_range}"
        )
    if sample.steps > config.diffusion.num_steps:
        raise ConfigError(
            f"config.sample.steps must be at most diffusion.num_steps = {config.diffusion.num_steps}, "
            f"got {sample.steps}"
        )
    _check_guidance(config)
    _check_ema(config)
    if (sample.classes is None) == (sample.labels == "list"):
        raise ConfigError(
            "config.sample.labels must be 'list' where sample.classes is given, and there alone, got "
            f"{sample.labels!r} and {sample.classes}"
        )
    if sample.classes is not None and not all(0 <= y < data.num_classes for y in sample.classes):
        raise ConfigError(
            f"config.sample.classes must be below data.num_classes = {data.num_classes}, got {sample.classes}"
        )


def _check_ema(config: Config) -> None:
    lengths, sample = config.training.ema_lengths, config.sample
    for field, length in [
        *(("training.ema_lengths", x) for x in lengths),
        ("sample.ema_length", sample.ema_length),
    ]:
        if length is not None and not 0 < length <= MAX_EMA_LENGTH:
            raise ConfigError(
                f"config.{field} must be above 0 and at most {MAX_EMA_LENGTH}, of the whole run, got {length}"
            )
    if len(set(lengths)) < len(lengths):
        raise ConfigError(f"config.training.ema_lengths must differ from each other, got {lengths}")
    if sample.ema_length is not None and not sample.ema:
        raise ConfigError("config.sample.ema must be True where sample.ema_length is given")


def _check_guidance(config: Config) -> None:
    sample = config.sample
    if sample.cfg_scale != 1 and not (config.data.num_classes or sample.autoguidance):
        raise ConfigError(
            "config.sample.cfg_scale must be 1 where data.num_classes is 0: guidance needs labels, or "
            "sample.autoguidance"
        )
    if sample.cfg_scale == 1 and sample.autoguidance is not None:
        raise ConfigError(
            "config.sample.cfg_scale must not be 1 where sample.autoguidance is given: it would do nothing"
        )
    interval = sample.cfg_interval
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ConfigError(
            f"config.sample.cfg_interval must be (low, high) with 0 <= low < high, got {interval}"
        )


def _check_values(config: Config) -> None:
    """Numbers are positive (a few may be 0), finite and of 32 bits, shares below 1; texts and lists are not empty."""
    for path in parsing.field_names(type(config)):
        value = parsing.get_field(config, path)
        items = value if isinstance(value, tuple) else (value,)
        if (not items and path not in _MAY_BE_EMPTY) or "" in items:
            raise ConfigError(f"config.{path} must not be empty, got {value!r}")
        for item in items:
            is_number = isinstance(item, (int, float)) and not isinstance(item, bool)
            if is_number and not (path.startswith("mesh.") and item == -1):
                _check_number(path, item)


def _check_number(path: str, value: Number) -> None:
    is_allowed = value > 0 or (value == 0 and path in _MAY_BE_ZERO)
    if not is_allowed or (value == float("inf") and path not in _MAY_BE_INFINITE):
        wanted = "at least 0" if path in _MAY_BE_ZERO else "positive"
        raise ConfigError(f"config.{path} must be {wanted} and finite, got {value}")
    if path in _SHARES and value >= 1:
        raise ConfigError(f"config.{path} must be below 1, got {value}")
    if isinstance(value, int) and value > MAX_INTEGER:
        raise ConfigError(f"config.{path} must be at most {MAX_INTEGER}, got {value}")
