"""Processes whose `huggingface_hub` speaks with a hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

from tests.hub.hub_server import WRITER, HubServer

ROOT = Path(__file__).parents[2]


class Client:
    """Starts processes in a folder of their own, with the library's own environment variables.

    Xet storage, which the library prefers and the server does not speak, is off. A variable of None
    is left out.
    """

    def __init__(self, server: HubServer, folder: Path):
        self.folder = folder
        self.variables = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(folder / "hub_home"),
            "HF_TOKEN": WRITER,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *words: object, **variables: str | None) -> subprocess.Popen:
        inherited = {name: x for name, x in os.environ.items() if not name.startswith("HF_")}
        settings = inherited | self.variables | variables
        environment = {name: x for name, x in settings.items() if x is not None}
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, **variables: str | None) -> subprocess.CompletedProcess:
        with self.start(*words, **variables) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def command(self, *options: object, **variables: str | None) -> subprocess.CompletedProcess:
        return self.run("-m", "diffussm_jax.main", *options, **variables)
