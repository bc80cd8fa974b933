"""The cycles of Pallas kernels, which XLA's own estimates leave out.

libtpu writes down the bundles of a kernel, but only if flags say so before it loads; hence a
process for each kernel, which compiles it alone. Costs are kept in the user's cache folder.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from diffussm_jax.config.parsing import read_as
from diffussm_jax.errors import UserError
from diffussm_jax.files import write_json
from diffussm_jax.planning import tpu_compiler
from diffussm_jax.planning.bundles import ORIGINAL, SCHEDULED, KernelCost, kernel_cost
from diffussm_jax.planning.kernel_calls import KernelCall

logger = logging.getLogger(__name__)

_READER = 2  # goes up when costs that were kept are not what `bundles` would read now
_FLAGS = "LIBTPU_INIT_ARGS"


def kernel_costs(topology: str, calls: Iterable[KernelCall]) -> dict[KernelCall, KernelCost]:
    """The cost of each call on a chip of a topology, as kept or else by compiling its kernel.

    Raises:
        RuntimeError: a kernel does not compile alone, or libtpu's text of it cannot be read.
    """
    folder = cache_folder("kernels")
    paths = {call: folder / f"{_key(topology, call)}.json" for call in calls}
    costs = {call: cost for call, path in paths.items() if (cost := _kept(path))}
    missing = [call for call in paths if call not in costs]
    if missing:
        logger.info("compiling %d kernels alone, to count their cycles", len(missing))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for call, cost in zip(missing, pool.map(lambda x: _compile(topology, x), missing)):
                costs[call] = cost
                _keep(paths[call], cost)
    return costs


def _compile(topology: str, call: KernelCall) -> KernelCost:
    with tempfile.TemporaryDirectory() as folder:
        flags = (
            os.environ.get(_FLAGS, ""),
            f"--xla_jf_dump_to={folder}",
            "--xla_jf_dump_llo_text=true",
            f"--xla_jf_dump_llo_pass_label_regex=({ORIGINAL}|{SCHEDULED})",
        )
        done = subprocess.run(
            [sys.executable, "-m", __name__, topology],
            input=json.dumps(call),
            env=os.environ
            | {
                _FLAGS: " ".join(flags),
                "JAX_PLATFORMS": "cpu",
                "JAX_ENABLE_COMPILATION_CACHE": "false",  # what it has is not compiled
            },
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the kernel {call.name} does not compile alone:\n{done.stderr}")
        try:
            return kernel_cost(*(_text(Path(folder), name) for name in (ORIGINAL, SCHEDULED)))
        except ValueError as error:
            raise RuntimeError(f"the cycles of the kernel {call.name}: {error}") from error


def _text(folder: Path, label: str) -> str:
    """The text of the kernel in the pass of a label: XLA's own operations have files too."""
    texts = [path.read_text(encoding="utf-8") for path in folder.glob(f"*-ffi_call*-{label}.txt")]
    if len(texts) != 1:
        raise ValueError(f"libtpu wrote {len(texts)} texts of {label!r} for it")
    return texts[0]


def cache_folder(name: str) -> Path:
    """A folder of the user's cache, for what compilers told; it may be missing."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "diffussm_jax", name)


def _key(topology: str, call: KernelCall) -> str:
    device = tpu_compiler.devices(topology)[0]
    compiler = version("libtpu"), os.environ.get(_FLAGS)
    text = json.dumps((_READER, device.device_kind, compiler, call))
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path) -> KernelCost | None:
    try:
        return read_as(path, KernelCost)
    except (FileNotFoundError, NotADirectoryError, UserError):  # a UserError: it is damaged
        return None


def _keep(path: Path, cost: KernelCost) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(cost))
    except OSError as error:
        logger.warning("the cycles of a kernel are not kept for the next plan: %s", error)


def main() -> None:
    """Compile the call that comes on stdin for the topology that the command line names."""
    (topology,) = sys.argv[1:]
    call = KernelCall(*json.load(sys.stdin))
    call.lower(tpu_compiler.devices(topology)[0]).compile()


if __name__ == "__main__":
    main()
