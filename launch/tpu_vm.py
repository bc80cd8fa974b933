"""A Cloud TPU slice and the job on it: python -m launch.tpu_vm create | run | status | logs | stop | delete

    python -m launch.tpu_vm run --name=church --zone=us-west4-a --type=v5e-16 --spot -- \\
        python -m diffussm_jax.main --config=configs/lsun256.py --workdir=gs://BUCKET/church

`run` makes the slice if there is none, waits for it, copies the last commit to it, starts the command on every host and watches it. A spot
slice that was taken back is made anew and the command started again; a run goes on from its last checkpoint. Every command can be
given twice. --dry_run prints the gcloud commands instead, --help has every flag.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launch.gcloud import Gcloud, GcloudError, build

# Of each kind of chip: gcloud's name of its slices, and of the software on its hosts
# (https://cloud.google.com/tpu/docs/runtimes).
KINDS = {
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
}
# States of a queued resource (https://cloud.google.com/tpu/docs/queued-resources).
COMING = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}
GONE = {"SUSPENDING", "SUSPENDED", "FAILED", "DELETING"}
# Exit codes of a job that goes on when started again: preempted and saved; killed, as by a host's restart.
AGAIN = (75, 137)
DATA = "diffussm/data"  # on a host; from the job, which runs in diffussm/source, ../data
ALL = {"node": "all", "worker": "all"}
PATIENCE = 10  # unanswered polls of an active slice before giving up
_STATE = re.compile(r"diffussm-job (?P<host>\S+) (?P<what>running|absent|ended (?P<code>\d+))")


class LaunchError(Exception):
    """What a user should know, in one line."""


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        return Slice(arguments).do(arguments.action)
    except (LaunchError, GcloudError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


class Slice:
    """One queued resource, of one or several TPU slices, and its job."""

    def __init__(self, arguments: argparse.Namespace):
        self._arguments, self._name = arguments, arguments.name
        shared = (
            "zone",
            "project",
            "internal_ip",
            "tunnel_through_iap",
            "network",
            "subnetwork",
            "internal_ips",
        )
        self._gcloud = Gcloud({x: getattr(arguments, x) for x in shared}, arguments.dry_run)

    def do(self, action: str) -> int:
        return getattr(self, action)() or 0

    def create(self) -> None:
        """Ask for it, unless it is there or coming; what was taken back or failed is deleted first."""
        state = self._gcloud.state(self._name)
        if state in COMING | {"ACTIVE"}:
            return self._say(f"{self._name} is {state}")
        if state is not None:
            self.delete()
        a = self._arguments
        family, _, size = a.type.partition("-")
        if family not in KINDS or not size.isdecimal():
            raise LaunchError(f"--type must be like v5e-16, of {', '.join(KINDS)}; got {a.type!r}")
        accelerator, runtime = KINDS[family]
        nodes = {"node_id": self._name}
        if a.num_slices > 1:
            nodes = {"node_count": a.num_slices, "node_prefix": self._name}
        self._gcloud(
            "create",
            self._name,
            accelerator_type=f"{accelerator}-{size}",
            runtime_version=a.runtime or runtime,
            **nodes,
            spot=a.spot,
            reserved=a.reserved,
            service_account=a.service_account,
            valid_until_duration=a.valid_until_duration,
            **{"async": True},
            quiet=True,
        )
        self._say(f"asked for {self._name} ({a.type})")

    def run(self) -> int:
        """Make the slice, start the command and watch it to its end, over preemptions.

        Returns:
            the command's exit code.
        """
        if not self._arguments.command:
            raise LaunchError("run needs a command after --")
        while True:
            self.create()
            self._await_active()
            codes = self._codes()
            if codes and None in codes:
                self._say("a job runs there already: watching it")
            else:
                self._start()
            code = self._watch()
            if code is not None and code not in AGAIN:
                return code
            why = "the slice was taken back" if code is None else f"it ended with {code}"
            self._say(f"the job is started again: {why}")

    def status(self) -> None:
        """The slice's state, and the job's on each host."""
        state = self._gcloud.state(self._name)
        self._say(f"{self._name}: {state or 'there is none'}")
        if state == "ACTIVE":
            self._say(self._remote("state").strip())

    def logs(self) -> None:
        """The last lines of the job's log on process 0's host."""
        sys.stdout.write(self._remote(f"logs {self._arguments.lines}", node="0", worker="0"))

    def stop(self) -> None:
        """End the job as preemption does: it saves first. The slice stays."""
        self._remote("stop")

    def delete(self) -> None:
        """Delete the slice, whatever its state, and wait until no quota is held."""
        if not self._arguments.dry_run and self._gcloud.state(self._name) is None:
            return self._say(f"there is no {self._name}")
        self._gcloud("delete", self._name, force=True, quiet=True)
        deadline = time.monotonic() + self._arguments.timeout
        while self._gcloud.state(self._name) is not None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{self._name} is not deleted after {self._arguments.timeout:g} s; it may hold quota"
                )
            time.sleep(self._arguments.poll)
        self._say(f"deleted {self._name}")

    def _await_active(self) -> None:
        deadline, last = time.monotonic() + self._arguments.timeout, None
        while not self._arguments.dry_run and (state := self._gcloud.state(self._name)) != "ACTIVE":
            if state != last:
                self._say(f"{self._name} is {state}")
                last = state
            if state is None or state in GONE:
                raise LaunchError(
                    f"{self._name} is {state or 'gone'}: `gcloud compute tpus queued-resources describe` says why"
                )
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{self._name} is still {state} after {self._arguments.timeout:g} s (--timeout)"
                )
            time.sleep(self._arguments.poll)

    def _start(self) -> None:
        """Copy the last commit to every host and start the command there."""
        if subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, check=True
        ).stdout:
            self._say("warning: changes that are not committed are not copied")
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "source.tar.gz"
            if not self._arguments.dry_run:
                subprocess.run(["git", "archive", "--output", archive, "HEAD"], check=True)
            script = Path(__file__).with_name("remote.sh")
            self._gcloud("scp", str(archive), str(script), f"{self._name}:", **ALL)
        self._remote("install")
        if self._arguments.data:
            copy = build("storage/rsync", self._arguments.data, DATA, recursive=True)
            text = f"mkdir -p {DATA} && {shlex.join(copy)}"
            self._gcloud("ssh", self._name, **ALL, command=text)
        self._remote(f"start {shlex.join(self._arguments.command)}")
        self._say("started on every host; `logs` shows process 0's")

    def _watch(self) -> int | None:
        """The exit code of the job when it has ended everywhere; None when the slice was taken back."""
        unanswered = 0
        while not self._arguments.dry_run:
            state = self._gcloud.state(self._name)
            if state is None or state in GONE:
                return None
            codes = self._codes()
            unanswered = unanswered + 1 if codes is None else 0
            if unanswered > PATIENCE:
                raise LaunchError(f"the hosts of {self._name} do not answer, or their job is gone")
            if codes and None not in codes:
                return self._report([code for code in codes if code])
            time.sleep(self._arguments.poll)
        return 0

    def _codes(self) -> list[int | None] | None:
        """Of each host its job's exit code, None where it runs; None if a host has no job or does not answer."""
        if self._arguments.dry_run:
            return None
        try:
            found = list(_STATE.finditer(self._remote("state")))
        except GcloudError:
            return None
        if not found or any(match["what"] == "absent" for match in found):
            return None
        return [int(match["code"]) if match["code"] else None for match in found]

    def _report(self, codes: list[int]) -> int:
        """One exit code for those of the hosts that are not 0; a failure shows its last lines."""
        code = next((code for code in codes if code in AGAIN), codes[0] if codes else 0)
        if code and code not in AGAIN:
            self._say(f"the job ended with exit code {code}; its last lines:")
            self.logs()
        return code

    def _remote(self, words: str, **where: str) -> str:
        return self._gcloud("ssh", self._name, **(ALL | where), command=f"bash remote.sh {words}")

    def _say(self, text: str) -> None:
        if self._arguments.dry_run:
            return
        stamp = time.strftime("%H:%M:%S ")
        sys.stderr.write(f"{stamp}{text}\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.tpu_vm",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("create", "run", "status", "logs", "stop", "delete"))
    parser.add_argument(
        "--name", required=True, help="of the slice; with several, the prefix of their names"
    )
    parser.add_argument("--zone", required=True)
    parser.add_argument("--project", help="default: gcloud's own")
    parser.add_argument(
        "--type",
        default="v5e-16",
        help="v4-32, v5e-16, v5p-32, v6e-16 ... (cores on v4 and v5p, else chips)",
    )
    parser.add_argument("--num_slices", type=int, default=1)
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument(
        "--spot", action="store_true", help="cheaper, and may be taken back at any time"
    )
    tier.add_argument("--reserved", action="store_true", help="from the project's reservation")
    parser.add_argument("--runtime", help="software of the hosts; default: by type")
    parser.add_argument(
        "--service_account", help="that may read and write the work directory's bucket"
    )
    parser.add_argument(
        "--valid_until_duration", help="as 6h: give up waiting in the queue after that"
    )
    for name in ("--network", "--subnetwork"):
        parser.add_argument(name)
    parser.add_argument(
        "--internal_ips", action="store_true", help="make hosts without external addresses"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--internal_ip", action="store_true", help="reach them by internal addresses")
    way.add_argument(
        "--tunnel_through_iap", action="store_true", help="reach them through Identity-Aware Proxy"
    )
    parser.add_argument(
        "--data", help="gs://... that is copied to every host, ../data for the command"
    )
    parser.add_argument("--lines", type=int, default=50, help="that `logs` shows")
    parser.add_argument("--poll", type=float, default=30.0, help="seconds between two looks")
    parser.add_argument(
        "--timeout", type=float, default=86400.0, help="seconds to wait for a state"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the gcloud commands")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:cut])
    arguments.command = words[cut + 1 :]
    return arguments


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    sys.exit(main())
