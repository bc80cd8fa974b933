"""The README.md of an export, in the form of the Hugging Face hub's model cards."""

import flax
import jax

from diffussm_jax.config import Config, ModelConfig
from diffussm_jax.workdir.data_facts import DataFacts

MAX_CLASSES = 20  # that are named; data.json has all

_CARD = """\
---
library_name: diffussm_jax
pipeline_tag: {task}
tags: [diffusion, {model}]
---

# {title}

{picture}{about} These are its EMA weights, in the form of `diffussm_jax`.

| | |
|---|---|
| model | {layers}, {num_parameters:,} parameters |
| denoises | {grid}, from {image_size} images |
| data | {data}, split `{split}` |
| source | {source} |
| classes | {classes} |
| trained for | {step:,} steps of {batch_size} images, EMA {ema_decay} |
| process | {process} |
| autoencoder | {autoencoder} |
| written with | jax {jax}, flax {flax} |

```python
import diffussm_jax

model = diffussm_jax.load("{place}")
images = model.sample({example}, steps={steps}, seed=0)
diffussm_jax.save_grid(images, "samples.png")
```

To train on from these weights: `--config.training.init_from={place}`.
Scores, intended use, limits and licence: not stated; whoever publishes these weights should.
"""

TITLES = {"diffussm": "DiffuSSM", "dit": "DiT"}
_ABOUT = {
    "diffussm": "An image diffusion model without attention, DiffuSSM "
    "([Yan, Gu and Rush, CVPR 2024](https://arxiv.org/abs/2311.18257)).",
    "dit": "An image diffusion model of attention over patches, DiT "
    "([Peebles and Xie, ICCV 2023](https://arxiv.org/abs/2212.09748)).",
}


def model_card(
    config: Config,
    facts: DataFacts,
    *,
    step: int,
    num_parameters: int,
    place: str = "FOLDER",
    picture: str | None = None,
) -> str:
    """Markdown that says what the weights are, how they were trained and how to draw samples.

    Args:
        place: the name of their folder, or of their repository as `hf://USER/NAME`.
        picture: the file of one beside the card.
    """
    model, data = config.model, config.data
    height, width, channels = config.grid
    conditional = bool(data.num_classes)
    return _CARD.format(
        task="unconditional-image-generation" if not conditional else "other",
        model=model.name,
        about=_ABOUT[model.name],
        title=f"{TITLES[model.name]} on {data.name.removeprefix('folder:')}",
        layers=_layers(model),
        num_parameters=num_parameters,
        grid=f"{height} x {width} x {channels} {data.space}",
        image_size=" x ".join(map(str, data.sides)),
        data=data.name,
        split=data.split,
        source=facts.source,
        classes=_classes(data.num_classes, facts.class_names),
        step=step,
        place=place,
        picture="" if picture is None else f"![Samples]({picture})\n\n",
        batch_size=config.training.batch_size,
        ema_decay=config.training.ema_decay,
        process=_process(config),
        autoencoder=_autoencoder(config),
        jax=jax.__version__,
        flax=flax.__version__,
        example="classes=[0]" if conditional else "num=4",
        steps=1 if config.diffusion.process == "mean_flow" else 50,
    )


def _layers(model: ModelConfig) -> str:
    if model.levels is None:
        return f"{model.depth} layers, width {model.width}"
    stages = ", ".join(map(str, model.levels))
    return f"{model.num_layers} layers in stages of {stages}, width {model.width} and more"


def _process(config: Config) -> str:
    diffusion, guidance = config.diffusion, config.guidance
    words = [diffusion.process.replace("_", " ")]
    if diffusion.process == "gaussian":
        words.append(f"{diffusion.schedule} schedule of {diffusion.num_steps} steps")
    words.append(f"predicts {diffusion.prediction}")
    if diffusion.variance != "none":
        words.append(f"variance {diffusion.variance}")
    if guidance.max_scale is not None:
        words.append(f"guided by `cfg_scale` in 1 .. {guidance.max_scale:g}, in one call")
    elif guidance.is_folded:
        words.append(f"guided at scale {guidance.scale:g} without `cfg_scale`")
    return ", ".join(words)


def _classes(num_classes: int, names: list[str] | None) -> str:
    if not num_classes:
        return "none"
    listed = ", ".join((names or [])[:MAX_CLASSES])
    more = ", ... (all in data.json)" if names and len(names) > MAX_CLASSES else ""
    return f"{num_classes}: {listed}{more}" if listed else str(num_classes)


def _autoencoder(config: Config) -> str:
    if config.data.space == "pixels":
        return "none"
    return f"{config.autoencoder.name}, scale {config.autoencoder.scale}"
