"""The gcloud commands that `launch.tpu_vm` runs.

A flag that is not in the table below is refused.
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from typing import Any

REFERENCE = "https://cloud.google.com/sdk/gcloud/reference"
# The flags that may be used, by command. The page REFERENCE/COMMAND describes each; REFERENCE
# describes those of all commands.
FLAGS = {
    "compute/tpus/queued-resources/create": {
        "accelerator-type",
        "runtime-version",
        "node-id",
        "node-count",
        "node-prefix",
        "spot",
        "reserved",
        "zone",
        "network",
        "subnetwork",
        "internal-ips",
        "service-account",
        "valid-until-duration",
        "async",
    },
    "compute/tpus/queued-resources/describe": {"zone"},
    "compute/tpus/queued-resources/delete": {"zone", "force"},
    "compute/tpus/queued-resources/ssh": {
        "zone",
        "node",
        "worker",
        "command",
        "batch-size",
        "internal-ip",
        "tunnel-through-iap",
    },
    "compute/tpus/queued-resources/scp": {
        "zone",
        "node",
        "worker",
        "batch-size",
        "internal-ip",
        "tunnel-through-iap",
    },
}
FLAGS_OF_ALL = {"project", "format", "quiet"}
QUEUED = "compute/tpus/queued-resources"


class GcloudError(Exception):
    """A command of gcloud failed; the message is the last line that it wrote."""


@dataclasses.dataclass(frozen=True)
class Gcloud:
    """Runs commands on queued resources, or prints them.

    Attributes:
        flags: flags of every command that has them, such as zone and project.
        dry_run: whether to print each command instead of running it.
    """

    flags: dict[str, Any]
    dry_run: bool = False

    def __call__(self, verb: str, /, *names: str, **flags: Any) -> str:
        """Return the output of `gcloud compute tpus queued-resources VERB NAMES FLAGS`.

        Raises:
            GcloudError: the command failed.
            ValueError: a flag is not in the table.
        """
        command = build(f"{QUEUED}/{verb}", *names, **self._known(verb), **flags)
        if self.dry_run:
            sys.stdout.write(shlex.join(command) + "\n")
            return ""
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise GcloudError(lines[-1])
        return done.stdout

    def state(self, name: str) -> str | None:
        """The state of a queued resource, such as ACTIVE; None if it does not exist."""
        try:
            text = self("describe", name, format="json")
        except GcloudError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise
        return json.loads(text)["state"]["state"] if text else None

    def _known(self, verb: str) -> dict[str, Any]:
        allowed = FLAGS[f"{QUEUED}/{verb}"] | FLAGS_OF_ALL
        return {name: x for name, x in self.flags.items() if name.replace("_", "-") in allowed}


def build(path: str, /, *names: str, **flags: Any) -> list[str]:
    """Make the words of a command; True is a flag without a value, None and False leave it out."""
    words = ["gcloud", *path.split("/"), *names]
    for key, value in flags.items():
        name = key.replace("_", "-")
        if name not in FLAGS[path] | FLAGS_OF_ALL:
            raise ValueError(f"--{name} is not among the flags of {path} in launch/gcloud.py")
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words.append(f"--{name}={value}")
    return words
