"""What a machine gives to JAX: settings in environment variables, and devices."""

import logging
import os

import jax

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.cuda import cuda_as_compiler
from diffussm_jax.parallel.libtpu import let_libtpu_compile

logger = logging.getLogger(__name__)

# The values that the program works under, JAX's default first. Under others of the first four a
# run would go on with other numbers than it was begun with; the rest would end in a traceback.
_NEEDED = {
    "jax_enable_x64": (False,),
    "jax_default_prng_impl": ("threefry2x32",),
    "jax_threefry_partitionable": (True,),
    "jax_random_seed_offset": (0,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_numpy_rank_promotion": ("allow", "warn"),
    "jax_transfer_guard": (None, "allow", "log", "log_explicit"),
    "jax_no_tracing": (False,),
}
# With another value of these a step has other bits, or takes longer.
_TOLD = {"jax_default_matmul_precision": None, "jax_disable_jit": False}


def start_jax() -> list[jax.Device]:
    """Find the devices of all processes, with the settings that the program is written for.

    Raises:
        UserError: in one line that names the environment variable.
    """
    for name, values in _NEEDED.items():
        if (value := _setting(name, values[0])) not in values:
            raise UserError(
                f"{name.upper()} must be {values[0]}, JAX's default, got {value}: unset it in the "
                "environment, or wherever jax.config is set"
            )
    for name, default in _TOLD.items():
        if (value := _setting(name, default)) != default:
            logger.info("%s is %s, which changes the program", name.upper(), value)
    return find_devices()


def find_devices() -> list[jax.Device]:
    """Find the devices of all processes.

    Raises:
        UserError: there are none of the kind that JAX_PLATFORMS asks for.
    """
    let_libtpu_compile()
    try:
        with cuda_as_compiler():
            return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError: cuda without its plug-in
        names = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if name in os.environ]
        asked = "".join(f" with {name}={os.environ[name]}" for name in names)
        why = f": {error}".splitlines()[0] if str(error) else ""
        raise UserError(f"JAX finds no device{asked}{why}") from error


def _setting(name: str, default: object) -> object:
    value = getattr(jax.config, name, default)  # a later JAX may have dropped it
    return getattr(value, "value", value)  # some are enums
