"""A Cloud TPU slice and the job on it.

    python -m launch.tpu_vm create | run | status | logs | stop | delete

    python -m launch.tpu_vm run --name=church --zone=us-west4-a --type=v5e-16 --spot -- \\
        python -m diffussm_jax.main --config=configs/lsun256.py --workdir=gs://BUCKET/church

`run` creates the slice if there is none, waits for it, copies the last commit to it, starts the
command on every host and watches it. A spot slice that was taken back is created again and the
command started again; a run goes on from its last checkpoint. Every command can be given twice.
--dry_run prints the gcloud commands instead, --help lists every flag.
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

from launch.gcloud import Gcloud, GcloudError

# By kind of chip: gcloud's name for slices of it, and the name of the software on their hosts
# (https://cloud.google.com/tpu/docs/runtimes).
KINDS = {
    "v4": ("v4", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", "v2-alpha-tpuv5"),
    "v6e": ("v6e", "v2-alpha-tpuv6e"),
}
# States of a queued resource (https://cloud.google.com/tpu/docs/queued-resources).
PENDING_STATES = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"}
LOST_STATES = {"SUSPENDING", "SUSPENDED", "FAILED", "DELETING"}
# Exit codes after which a job is started again: preempted after a save, and killed, as when a host
# restarts.
RESTARTED_EXIT_CODES = (75, 137)
EVERY_HOST = {"node": "all", "worker": "all"}
MAX_UNANSWERED = 10  # polls of an active slice without an answer before giving up
_JOB_STATE = re.compile(r"diffussm-job (?P<host>\S+) (?P<what>running|absent|ended (?P<code>\d+))")


class LaunchError(Exception):
    """A mistake or a failure that the user should know of, in one line."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
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
        """Run an action of the command line; return its exit code."""
        return getattr(self, action)() or 0

    def create(self) -> None:
        """Request the slice, unless it is active or pending; a lost one is deleted first."""
        state = self._gcloud.state(self._name)
        if state in PENDING_STATES | {"ACTIVE"}:
            return self._say(f"{self._name} is {state}")
        if state is not None:
            self.delete()
        options = self._arguments
        family, _, size = options.type.partition("-")
        if family not in KINDS or not size.isdecimal():
            raise LaunchError(
                f"--type must be like v5e-16, of {', '.join(KINDS)}; got {options.type!r}"
            )
        accelerator, runtime = KINDS[family]
        nodes = {"node_id": self._name}
        if options.num_slices > 1:
            nodes = {"node_count": options.num_slices, "node_prefix": self._name}
        self._gcloud(
            "create",
            self._name,
            accelerator_type=f"{accelerator}-{size}",
            runtime_version=options.runtime or runtime,
            **nodes,
            spot=options.spot,
            reserved=options.reserved,
            service_account=options.service_account,
            valid_until_duration=options.valid_until_duration,
            **{"async": True},
            quiet=True,
        )
        self._say(f"asked for {self._name} ({options.type})")

    def run(self) -> int:
        """Create the slice, start the command and watch it to its end, across preemptions.

        Returns:
            The command's exit code.
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
            if code is not None and code not in RESTARTED_EXIT_CODES:
                return code
            why = "the slice was taken back" if code is None else f"it ended with {code}"
            self._say(f"the job is started again: {why}")

    def status(self) -> None:
        """Print the state of the slice, and that of the job on each host."""
        state = self._gcloud.state(self._name)
        self._say(f"{self._name}: {state or 'there is none'}")
        if state == "ACTIVE":
            self._say(self._remote("state").strip())

    def logs(self) -> None:
        """Print the last lines of the job's log on the host of process 0."""
        sys.stdout.write(self._remote(f"logs {self._arguments.lines}", node="0", worker="0"))

    def stop(self) -> None:
        """End the job as preemption does: it saves first. The slice stays."""
        self._remote("stop")

    def delete(self) -> None:
        """Delete the slice, whatever its state, and wait until it holds no quota."""
        if not self._arguments.dry_run and self._gcloud.state(self._name) is None:
            return self._say(f"there is no {self._name}")
        self._gcloud("delete", self._name, force=True, quiet=True)
        deadline = time.monotonic() + self._arguments.timeout
        while self._gcloud.state(self._name) is not None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{self._name} is not deleted after {self._arguments.timeout:g} s; it may hold "
                    "quota"
                )
            time.sleep(self._arguments.poll)
        self._say(f"deleted {self._name}")

    def _await_active(self) -> None:
        deadline, last = time.monotonic() + self._arguments.timeout, None
        while not self._arguments.dry_run and (state := self._gcloud.state(self._name)) != "ACTIVE":
            if state != last:
                self._say(f"{self._name} is {state}")
                last = state
            if state is None or state in LOST_STATES:
                raise LaunchError(
                    f"{self._name} is {state or 'gone'}: `gcloud compute tpus queued-resources "
                    "describe` says why"
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
            self._gcloud("scp", str(archive), str(script), f"{self._name}:", **EVERY_HOST)
        self._remote("install")
        self._remote(f"start {shlex.join(self._arguments.command)}")
        self._say("started on every host; `logs` shows process 0's")

    def _watch(self) -> int | None:
        """Wait until the job has ended on every host and return its exit code.

        None means that the slice was taken back.
        """
        unanswered = 0
        while not self._arguments.dry_run:
            state = self._gcloud.state(self._name)
            if state is None or state in LOST_STATES:
                return None
            codes = self._codes()
            unanswered = unanswered + 1 if codes is None else 0
            if unanswered > MAX_UNANSWERED:
                raise LaunchError(f"the hosts of {self._name} do not answer, or their job is gone")
            if codes and None not in codes:
                return self._report([code for code in codes if code])
            time.sleep(self._arguments.poll)
        return 0

    def _codes(self) -> list[int | None] | None:
        """The exit code of the job on each host, None where it runs.

        The result is None if a host has no job or does not answer.
        """
        if self._arguments.dry_run:
            return None
        try:
            hosts = list(_JOB_STATE.finditer(self._remote("state")))
        except GcloudError:
            return None
        if not hosts or any(host["what"] == "absent" for host in hosts):
            return None
        return [int(host["code"]) if host["code"] else None for host in hosts]

    def _report(self, codes: list[int]) -> int:
        """Reduce the exit codes that are not 0 to one; a failure shows its last lines."""
        restarted = [code for code in codes if code in RESTARTED_EXIT_CODES]
        code = next(iter(restarted + codes), 0)
        if code and code not in RESTARTED_EXIT_CODES:
            self._say(f"the job ended with exit code {code}; its last lines:")
            self.logs()
        return code

    def _remote(self, words: str, **where: str) -> str:
        return self._gcloud(
            "ssh", self._name, **(EVERY_HOST | where), command=f"bash remote.sh {words}"
        )

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
