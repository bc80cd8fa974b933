"""The fused stack of blocks against the loop over them, and against their equations in float64."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffussm_jax.config import from_dict
from diffussm_jax.config.parsing import ConfigError
from diffussm_jax.errors import UserError
from diffussm_jax.models.stack import choose, refusal
from diffussm_jax.ops.stack_tpu.choose import stack_tiling_for
from diffussm_jax.training.state import abstract_model, stack_in_training
from tests.models.tiny import randomized, tiny

SIDE = 16  # of the grid: 256 tokens
CASES = {
    "m 2, both directions": {"m": 2},
    "m 1, forward, gate": {"m": 1, "direction": "forward", "gate": True},
    "recomputed": {"m": 1, "remat": "full", "depth": 3},
    "m 4, shared SSM, bfloat16 x": {
        "m": 4,
        "width": 32,
        "share_ssm": True,
        "residual_dtype": "bfloat16",
    },
}


def config_for(dtype="float32", depth=2, **model):
    side = 32 if model.get("m") == 4 else SIDE
    values = dataclasses.asdict(tiny(dtype=dtype, depth=depth, **model))
    values["data"]["image_size"] = side
    return from_dict(values)


def inputs_of(config):
    rng = np.random.default_rng(1)
    shape = (3, *config.grid)
    x, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    dy = jnp.concatenate([dy, dy[::-1]], axis=-1)
    return x, dy, jnp.array([0, 7, 49]), jnp.array([1, 2, 10])


def run(config, name):
    """The output, and the gradients of the parameters and of x."""
    _, params = randomized(config)
    x, dy, t, y = inputs_of(config)
    model = dataclasses.replace(config.model, stack_implementation=name)
    graphdef, _ = abstract_model(dataclasses.replace(config, model=model))

    @jax.jit
    def both(params, x):
        output, vjp = jax.vjp(lambda params, x: nnx.merge(graphdef, params)(x, t, y), params, x)
        return output, vjp(dy)

    return both(params, x)


def exact(config):
    """The same by the equations of docs/architecture.md, in float64."""
    _, params = randomized(config)
    x, dy, t, y = inputs_of(config)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (params, x, dy))

        @jax.jit
        def both(params, x, dy):
            output, vjp = jax.vjp(lambda *a: denoise(config, *a, t, y), params, x)
            return output, vjp(dy)

        return jax.tree.map(np.asarray, both(*wide))


def denoise(config, p, x, t, y):
    model = config.model
    b, height, width, _ = x.shape
    half = np.arange(128)
    angles = np.asarray(t, np.float64)[:, None] * np.exp(-np.log(10_000) * half / 128)
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    c = linear(p["timestep"]["out"], jax.nn.silu(linear(p["timestep"]["hidden"], features)))
    c = c + p["label"]["table"][y]
    x = linear(p["embed"], x.reshape(b, -1, model.m)) + place_code(height, width, model)
    for layer in range(model.depth):
        x = block(jax.tree.map(operator.itemgetter(layer), p["blocks"]), x, c, model)
    x = linear(p["head"], modulate(x, *vectors(p["modulation"], c, 2)))
    return x.reshape(b, height, width, -1)


def place_code(height, width, model):
    d = model.width
    rows, columns = np.divmod(np.arange(height * width), width)
    codes = []
    for axis in (rows, columns):
        centres = axis.reshape(-1, model.m).mean(axis=1)
        angles = centres[:, None] * np.exp(-np.log(10_000) * np.arange(d // 4) / (d // 4))
        codes += [np.cos(angles), np.sin(angles)]
    return np.concatenate(codes, axis=-1)


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def vectors(p, c, num):
    return jnp.split(linear(p["linear"], jax.nn.silu(c))[:, None], num, axis=-1)


def modulate(x, shift, scale):
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-6)
    return normal * (1 + scale) + shift


def block(p, x, c, model):
    b, j, d = x.shape
    gelu, m = jax.nn.gelu, model.m
    shift, scale, *gate = vectors(p["modulation"], c, 3 if model.gate else 2)
    i = modulate(x, shift, scale)
    u = gelu(linear(p["w_up"], gelu(linear(p["w0"], i)))).reshape(b, j * m, d)
    y = s4d(p["ssm"], u, model).reshape(b, j, m, -1)
    down = jnp.einsum("bjmi,mio->bjmo", y, p["w_down"]["kernel"]) + p["w_down"]["bias"]
    down = gelu(down.reshape(b, j, -1))
    o = linear(p["w3"], gelu(linear(p["w2"], down)) * gelu(linear(p["w1"], i)))
    return x + (gate[0] * o if gate else o)


def s4d(p, u, model):
    dt = jnp.exp(p["log_dt"])[..., None]
    a = -jnp.exp(p["log_neg_a_re"]) + 1j * p["a_im"]
    b, c = (p[name][..., 0] + 1j * p[name][..., 1] for name in ("b", "c"))
    gains = b * c * (jnp.exp(dt * a) - 1) / a
    l = u.shape[1]
    powers = jnp.exp((dt * a)[..., None] * np.arange(l))
    kernel = 2 * jnp.einsum("rdn,rdnt->rdt", gains, powers).real
    lags = np.arange(l)[:, None] - np.arange(l)
    outputs = []
    for r in range(2 if model.direction == "both" else 1):
        taps = jnp.where(lags >= 0, kernel[r][:, np.maximum(lags, 0)], 0)  # d t s
        forward = u[:, ::-1] if r else u
        y = jnp.einsum("dts,bsd->btd", jnp.broadcast_to(taps, (u.shape[-1], l, l)), forward)
        outputs.append((y[:, ::-1] if r else y) + u * p["skip"][r])
    return jnp.concatenate(outputs, axis=-1)


def errors(actual, expected):
    """Of each array, relative to the largest value there."""
    paths = jax.tree_util.tree_leaves_with_path(expected)
    return {
        jax.tree_util.keystr(path): np.abs(np.asarray(a, np.float64) - e).max() / np.abs(e).max()
        for (path, e), a in zip(paths, jax.tree.leaves(actual), strict=True)
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_equations(case):
    config = config_for(**CASES[case])
    # x is rounded where it has a dtype of its own, in both forms alike.
    is_rounded = config.model.residual_dtype == "bfloat16"
    expected = exact(config)
    loop, kernels = (errors(run(config, name), expected) for name in ("xla", "pallas_tpu"))
    for path, error in kernels.items():
        assert error < (3e-2 if is_rounded else 3e-5), path
        assert error < 2 * loop[path] + 5e-6, path


@pytest.mark.slow
def test_bfloat16_is_as_near_to_the_equations_as_the_loop():
    config = config_for("bfloat16")
    expected = exact(config)
    loop, kernels = (errors(run(config, name), expected) for name in ("xla", "pallas_tpu"))
    assert np.median(list(kernels.values())) < 1.2 * np.median(list(loop.values()))
    for path, error in kernels.items():
        assert error < 2 * loop[path] + 5e-3, path


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_prepared_blocks_and_calls_without_gradients(depth):
    """The stacks of one layer take turns; the last x may be in either."""
    config = config_for(depth=depth, stack_implementation="pallas_tpu")
    graphdef, params = randomized(config)
    x, _, t, y = inputs_of(config)

    @jax.jit
    def call(params):
        model = nnx.merge(graphdef, params)
        return model(x, t, y), model.prepare(*config.grid[:2])(x, t, y)

    config = config_for(depth=depth)
    graphdef, _ = abstract_model(config)
    expected = call(params)[0] * 0 + nnx.merge(graphdef, params)(x, t, y)
    for actual in call(params):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_what_a_cpu_takes_by_itself_is_the_loop():
    config = config_for()
    assert choose(config.model, None, 128) is None
    assert choose(config.model, "xla", 128) is None
    assert choose(config.model, "pallas_tpu", 128).dense.interpret


@pytest.mark.parametrize(
    ("model", "num_groups", "reason"),
    [
        ({"dtype": "bfloat16", "width": 1152, "state_size": 64}, 512, None),
        ({"dtype": "float32", "width": 1152}, 512, "dtype is float32"),
        ({"ssm_implementation": "fft"}, 512, "ssm_implementation is fft"),
        ({"width": 1152, "state_size": 256}, 512, "128 pairs of poles, more than 32"),
        ({"width": 1000}, 512, "a width of 1000 is no multiple of 128"),
        ({"width": 4608}, 512, "MiB of VMEM"),
    ],
)
def test_refusals_say_why(model, num_groups, reason):
    config = config_for(**{"dtype": "bfloat16"} | model).model
    found = refusal(config, num_groups, stack_tiling_for("TPU v5 lite"))
    assert found == reason if reason is None else reason in found


def test_forced_kernels_that_cannot_run_are_an_error():
    config = config_for(ssm_implementation="fft").model
    with pytest.raises(UserError, match=r"stack_implementation is pallas_tpu, .* fft; None takes"):
        choose(config, "pallas_tpu", 128)


def test_a_mean_flow_is_trained_by_the_loop():
    flow = {"process": "mean_flow", "prediction": "v", "variance": "none"}
    values = {"diffusion": flow, "sample": {"sampler": "euler"}}
    assert stack_in_training(from_dict(values)) == "xla"
    assert stack_in_training(from_dict({})) is None
    with pytest.raises(ConfigError, match=r"stack_implementation must be None or xla"):
        from_dict(values | {"model": {"stack_implementation": "pallas_tpu"}})
