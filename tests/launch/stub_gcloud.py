"""A gcloud for tests: queued resources are folders under $STUB, whose hosts are this machine.

$STUB/log keeps every command line. $STUB/preempt, if it exists when a resource is described, takes
the resource back.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

STUB = Path(os.environ["STUB"])
NUM_HOSTS = 2


def main() -> int:
    words = sys.argv[1:]
    with (STUB / "log").open("a") as log:
        log.write(json.dumps(words) + "\n")
    assert words[:3] == ["compute", "tpus", "queued-resources"], words
    verb, rest = words[3], words[4:]
    flags = dict(x[2:].partition("=")[::2] for x in rest if x.startswith("--"))
    names = [x for x in rest if not x.startswith("--")]
    resource = STUB / "resources" / names[-1].rstrip(":")
    if verb == "create":
        return create(resource)
    if not resource.exists():
        sys.stderr.write("ERROR: (gcloud) NOT_FOUND: Resource was not found\n")
        return 1
    return {"describe": describe, "delete": delete, "ssh": ssh, "scp": scp}[verb](
        resource, names, flags
    )


def create(resource: Path) -> int:
    if resource.exists():
        sys.stderr.write("ERROR: (gcloud) ALREADY_EXISTS\n")
        return 1
    for host in range(NUM_HOSTS):
        (resource / f"host{host}").mkdir(parents=True)
    (resource / "state").write_text("WAITING_FOR_RESOURCES")
    return 0


def describe(resource: Path, names, flags) -> int:
    state = (resource / "state").read_text()
    sys.stdout.write(json.dumps({"state": {"state": state}}))
    if state in ("WAITING_FOR_RESOURCES", "PROVISIONING"):
        (resource / "state").write_text("PROVISIONING" if state[0] == "W" else "ACTIVE")
    if state == "ACTIVE" and (STUB / "preempt").exists():
        (STUB / "preempt").unlink()
        kill_jobs(resource)
        (resource / "state").write_text("SUSPENDED")
    return 0


def delete(resource: Path, names, flags) -> int:
    assert "force" in flags or (resource / "state").read_text() == "SUSPENDED"
    kill_jobs(resource)
    shutil.rmtree(resource)
    return 0


def kill_jobs(resource: Path) -> None:
    for pid in resource.glob("host*/diffussm/job/pid"):
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            continue


def hosts(resource: Path, flags: dict) -> list[Path]:
    assert (resource / "state").read_text() == "ACTIVE"
    worker = flags.get("worker", "0")
    return [x for x in sorted(resource.glob("host*")) if worker in ("all", x.name[4:])]


def ssh(resource: Path, names, flags) -> int:
    codes = [
        subprocess.run(
            ["bash", "-c", flags["command"]],
            cwd=host,
            env=os.environ | {"HOME": str(host)},
            check=False,
        ).returncode
        for host in hosts(resource, flags)
    ]
    return max(codes)


def scp(resource: Path, names, flags) -> int:
    for host in hosts(resource, flags):
        for name in names[:-1]:
            shutil.copy(name, host)
    return 0


if __name__ == "__main__":
    sys.exit(main())
