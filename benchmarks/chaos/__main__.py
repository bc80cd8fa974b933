"""Does a run that is killed again and again end where the undisturbed run ends?

python -m benchmarks.chaos [--short] trains a tiny model on this machine's CPU, in processes of
their own that are ended from outside. Each is a fork of this process, which imports what they need
once.
- kills: SIGKILL at random times, a third of them while a checkpoint is being written;
- terms: SIGTERM at random times, after which the run saves its step and ends with 75;
- processes: jobs of two processes of which one is killed or told to stop;
- devices: restarts on 1, 2 and 4 devices in turn;
- pairs: two runs started at once in one work directory, of which one must be refused.
All but `devices` must end bit for bit where the undisturbed run ends: parameters, EMA, optimizer
state, and each step's loss and gradient norm, each step logged once. With other devices sums are
added in another order: the losses must agree to 1e-5 within 20 steps of a restart and to 1e-3 at
the end. Prints every kill; exits with 1 if a comparison fails.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.chaos.run import ENVIRONMENT, RECIPES, Run, in_fork
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.shapes import ceil_div
from diffussm_jax.training.state import TrainState, abstract_state
from diffussm_jax.workdir import layout
from diffussm_jax.workdir.checkpoints import Checkpoints

TIMED = {"images_per_second", "input_wait"}  # fields of a metrics line that may differ
PAIR_STEPS = 60
STEPS_PER_LIFE = 20  # at most, from a restart to the next disturbance


def undisturbed(options: argparse.Namespace, name: str, *, processes: int = 1) -> Run:
    """Train in the folder `name`, to compare with."""
    run = Run(options.folder / name, options, processes=processes)
    run.start()
    run.finish()
    return run


def kills(options: argparse.Namespace, rng: random.Random, reference: Run) -> None:
    """Kill at a random time after the first step, or while a checkpoint is written."""
    run, num_in_write = Run(options.folder / "kills", options), 0
    min_in_write = ceil_div(options.kills, 3)
    for number in range(1, options.kills + 1):
        run.start()
        start = run.await_start()
        num_missing, num_left = min_in_write - num_in_write, options.kills - number
        is_in_write = (num_missing > 0 and rng.random() < 0.6) or num_left < num_missing
        run.await_step(start + rng.randrange(1, STEPS_PER_LIFE))
        if is_in_write:
            run.await_write()
        time.sleep(rng.uniform(0, 0.04 if is_in_write else 0.1))
        run.process.kill()
        run.wait()
        torn = run.unfinished()
        num_in_write += bool(torn)
        say(
            f"kill {number}: went on from step {start}, SIGKILL after step {run.step()}"
            + (f", while {torn[0]} was written" if torn else "")
        )
    run.start()
    run.finish()
    say(f"{options.kills} kills, {num_in_write} of them during a checkpoint write")
    in_fork(compare, run, reference)
    if num_in_write < min_in_write:
        raise SystemExit(f"error: only {num_in_write} kills met a write")


def terms(options: argparse.Namespace, rng: random.Random, reference: Run) -> None:
    """Send SIGTERM at a random time, which saves the step."""
    run = Run(options.folder / "terms", options)
    for number in range(1, options.terms + 1):
        run.start()
        start = run.await_start()
        run.await_step(start + rng.randrange(1, STEPS_PER_LIFE))
        time.sleep(rng.uniform(0, 0.05))
        run.process.terminate()
        code = run.wait()
        say(
            f"SIGTERM {number}: went on from step {start}, saved step {run.step()}, "
            f"exit code {code}"
        )
        if code != Preempted.exit_code:
            raise SystemExit(f"error: exit code {code}, not {Preempted.exit_code}")
    run.start()
    run.finish()
    in_fork(compare, run, reference)


def processes(options: argparse.Namespace, rng: random.Random, reference: Run) -> None:
    """Kill one of two processes, or tell it to stop."""
    run = Run(options.folder / "processes", options, processes=2)
    for number in range(1, options.job_ends + 1):
        run.start()
        start = run.await_start()
        run.await_step(start + rng.randrange(1, STEPS_PER_LIFE))
        victim = rng.randrange(2)
        how = rng.choice([signal.SIGKILL, signal.SIGTERM])
        os.kill(run.child(victim), how)
        code = run.wait()
        say(
            f"job {number}: went on from step {start}, {how.name} to process {victim} after step "
            f"{run.step()}, exit code {code}"
        )
        if code != (Preempted.exit_code if how == signal.SIGTERM else 128 + how):
            raise SystemExit(f"error: exit code {code}:\n{run.log_text()[-3000:]}")
    run.start()
    run.finish()
    in_fork(compare, run, undisturbed(options, "undisturbed_processes", processes=2))


def devices(options: argparse.Namespace, rng: random.Random, reference: Run) -> None:
    """Stop again and again, and go on with another number of devices each time."""
    run, num = Run(options.folder / "devices", options), 0
    starts: list[int] = []
    while run.step() < options.num_steps:
        run.start(num_devices := (1, 2, 4)[num % 3])
        num += 1
        start = run.await_start()
        starts.append(start)
        if num <= options.moves:
            run.await_step(start + rng.randrange(20, 20 + STEPS_PER_LIFE))
            run.process.terminate()
        run.wait()
        say(f"from step {start} to {run.step()} on {num_devices} device(s)")
    ours, theirs = run.lines(), reference.lines()
    errors = np.array([abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs) if "loss" in b])
    after = [errors[start : start + 20].max() for start in starts]
    say(
        "relative error of the loss within 20 steps of each restart: "
        f"{', '.join(f'{x:.1e}' for x in after)}; at the end {errors[-1]:.1e}"
    )
    if max(after) > 1e-5 or errors[-1] > 1e-3:
        raise SystemExit("error: the losses differ")


def pairs(options: argparse.Namespace, rng: random.Random, reference: Run) -> None:
    """Start two runs at once in one folder, again and again; then kill one and start the next."""
    options = argparse.Namespace(**vars(options) | {"num_steps": PAIR_STEPS})
    reference = undisturbed(options, "undisturbed_pairs")
    for number in range(1, options.pairs + 1):
        run = Run(options.folder / "pairs", options)
        rival = run.rival()
        run.start()
        rival.start()
        ended = {x.wait(): x for x in (run, rival)}
        lines = {
            code: x.log.read_text(encoding="utf-8").splitlines()[-1] for code, x in ended.items()
        }
        say(f"pair {number}: exit codes {sorted(map(str, ended))}, {lines.get(2)}")
        if ended.keys() != {0, UserError.exit_code}:
            raise SystemExit(f"error: {lines}")
        if f"in use by process {ended[0].process.pid} " not in lines[2]:
            raise SystemExit("error: that line does not name the run in the folder")
        in_fork(compare, run, reference)
    run = Run(options.folder / "pairs", options)
    run.start()
    run.await_step(STEPS_PER_LIFE)
    run.process.kill()
    run.wait()
    began = time.monotonic()
    run.start()
    run.await_start()
    say(f"SIGKILL: the next start goes on after {time.monotonic() - began:.1f} s")
    run.finish()
    in_fork(compare, run, reference)


def compare(run: Run, reference: Run) -> None:
    """End the program unless two runs have the same log and the same state."""
    ours, theirs = (
        [{k: v for k, v in line.items() if k not in TIMED} for line in x.lines()]
        for x in (run, reference)
    )
    if ours != theirs:
        first = next(((a, b) for a, b in zip(ours, theirs) if a != b), "the number of lines")
        raise SystemExit(f"error: the logs differ: {first}")
    leaves = [jax.tree_util.tree_leaves_with_path(final_state(x.folder)) for x in (run, reference)]
    for (path, a), (_, b) in zip(*leaves, strict=True):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            raise SystemExit(f"error: {jax.tree_util.keystr(path)} differs")
    say(
        f"{run.folder.name}: {len(ours)} log lines and {len(leaves[0])} arrays are bit for bit "
        "those of the undisturbed run"
    )


def final_state(folder: Path) -> TrainState:
    """The state in the last checkpoint of a run, on one device."""
    config = layout.read_config(folder)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    with Checkpoints(folder, config.checkpoint) as checkpoints:
        saved = checkpoints.restore(abstract_state(config, mesh))
    if saved is None:
        raise SystemExit(f"error: {folder} has no checkpoint")
    return saved.state


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


SCENARIOS = {
    "kills": kills,
    "terms": terms,
    "processes": processes,
    "devices": devices,
    "pairs": pairs,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="3 kills and a SIGTERM: a minute")
    parser.add_argument("--only", choices=SCENARIOS, help="one kind of disturbance")
    parser.add_argument("--recipe", choices=RECIPES, default="ddpm", help="what is trained")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("--data_dir", help="of the prepared digits; default: TFDS's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.folder = options.folder.absolute()
    sizes = {"num_steps": 400, "kills": 30, "terms": 10, "job_ends": 6, "moves": 8, "pairs": 10}
    if options.short:
        sizes |= {"num_steps": 60, "kills": 3, "terms": 1, "pairs": 2}
    vars(options).update(sizes)
    chosen = [options.only] if options.only else list(SCENARIOS)[: 2 if options.short else None]
    os.environ |= ENVIRONMENT
    began, rng = time.monotonic(), random.Random(options.seed)
    reference = undisturbed(options, "undisturbed")
    for name in chosen:
        SCENARIOS[name](options, rng, reference)
    say(f"all as it should be, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
