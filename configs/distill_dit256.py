"""The released DiT-XL/2 at 256 x 256 taught to a student without attention, on ImageNet latents.

The student has DiT's blocks around another mixer, takes over every weight of the teacher but those
of attention, and learns from the teacher's output besides the usual loss (docs/distillation.md).
After `:` stands its mixer, s4d by default.

Teacher first, from https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt, where PyTorch is
installed (`pip install -e '.[parity]'`):

python -m diffussm_jax.convert.dit DiT-XL-2-256x256.pt runs/dit-xl-2

On the latents of configs/imagenet256.py:

python -m diffussm_jax.main --config=configs/distill_dit256.py --workdir=runs/distilled

On the teacher's own samples, drawn without guidance:

python -m diffussm_jax.main --config=configs/dit256.py --workdir=runs/dit-xl-2 --mode=sample \
    --config.sample.outputs=latents --config.sample.num=50000 --config.sample.cfg_scale=1
python -m diffussm_jax.main --config=configs/distill_dit256.py --workdir=runs/distilled \
    --config.data.latents_dir=runs/dit-xl-2/samples/latents --config.data.eval_split=None
"""

from typing import get_args

import ml_collections

from configs import dit256
from diffussm_jax.config import MixerName


def get_config(mixer: str = "s4d") -> ml_collections.ConfigDict:
    mixers = [name for name in get_args(MixerName) if name != "attention"]
    if mixer not in mixers:
        raise ValueError(
            f"configs/distill_dit256.py takes a mixer, one of {', '.join(mixers)}; got {mixer!r}"
        )
    config = dit256.get_config("XL/2")
    config.model.mixer = mixer
    config.training.teacher = "runs/dit-xl-2"  # the converted weights
    config.training.num_steps = 400_000  # about 6 % of the teacher's 7M
    return config
