"""From attention to attention-free in minutes: a DiT on the demo's digits, and its student.

The student has DiT's blocks around another mixer, takes over every weight of the teacher but those
of attention, and learns for a third of its steps (docs/distillation.md). After `:` stands what is
trained: teacher, or the mixer of a student, s4d by default.

Command:  make distill
which is  python -m diffussm_jax.main --config=configs/distill_digits.py:teacher \
              --workdir=runs/distill_digits/teacher
          python -m diffussm_jax.main --config=configs/distill_digits.py:s4d \
              --workdir=runs/distill_digits/s4d
then      the same commands with --mode=sample
"""

from typing import get_args

import ml_collections

from configs import digits
from diffussm_jax.config import MixerName


def get_config(network: str = "s4d") -> ml_collections.ConfigDict:
    mixers = [name for name in get_args(MixerName) if name != "attention"]
    if network not in ("teacher", *mixers):
        raise ValueError(
            "configs/distill_digits.py takes teacher or a student's mixer, one of "
            f"{', '.join(mixers)}; got {network!r}"
        )
    config = digits.get_config()
    config.model.name = "dit"
    config.model.num_heads = 4
    config.optimizer.schedule = "cosine"
    if network != "teacher":
        config.model.mixer = network
        config.training.teacher = "runs/distill_digits/teacher"
        config.training.num_steps = 500
        config.training.ema_decay = 0.98  # short against so few steps
    return config
