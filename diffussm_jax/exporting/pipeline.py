"""A DiT as a pipeline of `diffusers`, which `DiTPipeline.from_pretrained` opens.

Its transformer has the weights of the released code under other names. Its scheduler is DDIM's, and
its autoencoder a copy of the one that the run's latents are of.
"""

import json
import logging
from typing import Any

import numpy as np
import safetensors.numpy

from diffussm_jax.autoencoder import weights as autoencoder
from diffussm_jax.config import Config
from diffussm_jax.config.parsing import require
from diffussm_jax.diffusion.schedule import make_schedule
from diffussm_jax.exporting.timesteps import fit
from diffussm_jax.models.released_dit import LABELS, to_released

logger = logging.getLogger(__name__)

Tensors = dict[str, np.ndarray]

INDEX_FILE = "model_index.json"
VERSION = "0.42.1"  # of diffusers, that `make parity` tries it with
NULL_LABEL = 1000  # that DiTPipeline knows for "no class", whatever the number of classes
# Names in the released code, and those that diffusers has for them.
LAYERS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
BLOCK_LAYERS = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
TOLERANCE = 1e-3  # of the embeddings of the steps, before a warning says how far they are off
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def pipeline_files(
    config: Config, tensors: Tensors, class_names: list[str] | None
) -> dict[str, bytes]:
    """The files of a pipeline by their names in its folder.

    Args:
        tensors: parameters by their names in an export.

    Raises:
        ConfigError: the model is none that the pipeline has.
        UserError: its autoencoder is not here.
    """
    _require_a_pipeline(config)
    folder = autoencoder.find_autoencoder(config.autoencoder.name)
    vae = json.loads((folder / autoencoder.CONFIG_FILE).read_text(encoding="utf-8"))
    vae |= {"_class_name": "AutoencoderKL", "scaling_factor": config.autoencoder.scale}
    configs = {"transformer/config.json": _transformer(config)}
    configs["scheduler/scheduler_config.json"] = _scheduler(config)
    configs["vae/config.json"] = vae
    configs[INDEX_FILE] = _index(class_names or [str(y) for y in range(config.data.num_classes)])
    weights = safetensors.numpy.save(_weights(config, tensors))
    return {
        **{name: json.dumps(values, indent=2).encode() for name, values in configs.items()},
        f"transformer/{autoencoder.WEIGHTS_FILE}": weights,
        f"vae/{autoencoder.WEIGHTS_FILE}": (folder / autoencoder.WEIGHTS_FILE).read_bytes(),
    }


def _require_a_pipeline(config: Config) -> None:
    model, data, diffusion = config.model, config.data, config.diffusion
    max_scale = config.guidance.max_scale
    is_square = data.sides[0] == data.sides[1]
    demands = {
        "model.name": (model.name == "dit", "'dit'", model.name),
        "model.mixers": (model.pattern == ("attention",), "attention alone", model.pattern),
        "model.levels": (model.levels is None, "None", model.levels),
        "model.mlp_ratio": (model.mlp_ratio == 4, "4", model.mlp_ratio),
        "model.position": (model.position == "sincos2d", "'sincos2d'", model.position),
        "model.position_scale": (model.position_scale == 1, "1", model.position_scale),
        "diffusion.process": (diffusion.process == "gaussian", "'gaussian'", diffusion.process),
        "guidance.max_scale": (max_scale is None, "None", max_scale),
        "data.space": (data.space == "latents", "'latents'", data.space),
        "data.image_size": (is_square, "the side of a square", data.image_size),
        "data.num_classes": (0 < data.num_classes <= NULL_LABEL, "in 1 .. 1000", data.num_classes),
    }
    for field, (is_met, wanted, value) in demands.items():
        require(is_met, field, f"be {wanted} for export.format = 'diffusers'", value)


def _transformer(config: Config) -> dict[str, Any]:
    height, _, channels = config.grid
    is_learned = config.diffusion.variance == "learned_range"
    return {
        "_class_name": "DiTTransformer2DModel",
        "_diffusers_version": VERSION,
        "activation_fn": "gelu-approximate",
        "attention_head_dim": config.model.width // config.model.num_heads,
        "in_channels": channels,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": config.model.num_heads,
        "num_embeds_ada_norm": NULL_LABEL,
        "num_layers": config.model.depth,
        "out_channels": 2 * channels if is_learned else channels,
        "patch_size": config.model.patch_size,
        "sample_size": height,
    }


def _scheduler(config: Config) -> dict[str, Any]:
    diffusion = config.diffusion
    betas = make_schedule(diffusion.schedule, diffusion.num_steps).betas
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "beta_end": float(betas[-1]),
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[diffusion.schedule],
        "beta_start": float(betas[0]),
        "clip_sample": diffusion.clip_x0,
        "num_train_timesteps": diffusion.num_steps,
        "prediction_type": PREDICTIONS[diffusion.prediction],
        "timestep_spacing": "trailing",  # which begins at pure noise
    }


def _index(class_names: list[str]) -> dict[str, Any]:
    return {
        "_class_name": "DiTPipeline",
        "_diffusers_version": VERSION,
        "id2label": dict(enumerate(class_names)),
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _weights(config: Config, tensors: Tensors) -> Tensors:
    """The transformer's weights; each of its blocks has the embeddings of step and class."""
    depth, patch_size = config.model.depth, config.model.patch_size
    fitted, error = fit(tensors, config.diffusion.num_steps)
    logger.info(
        "the embeddings of the steps are those of the model within %.1e of their size", error
    )
    released = to_released(tensors | fitted, depth=depth, patch_size=patch_size)
    table = released[LABELS]  # a row is "no class" where the pipeline's classes are not the model's
    rest = np.broadcast_to(table[-1], (NULL_LABEL + 1 - len(table), table.shape[1]))
    embeddings = {"class_embedder.embedding_table.weight": np.concatenate([table, rest])}
    weights: Tensors = {}
    for kind in ("weight", "bias"):
        for index in (0, 2):
            name = f"timestep_embedder.linear_{index // 2 + 1}.{kind}"
            embeddings[name] = released[f"t_embedder.mlp.{index}.{kind}"]
        weights |= {f"{y}.{kind}": released[f"{x}.{kind}"] for x, y in LAYERS.items()}
        for layer in range(depth):
            block, theirs = f"blocks.{layer}", f"transformer_blocks.{layer}"
            for x, y in BLOCK_LAYERS.items():
                weights[f"{theirs}.{y}.{kind}"] = released[f"{block}.{x}.{kind}"]
            parts = np.split(released[f"{block}.attn.qkv.{kind}"], 3)
            for part, letter in zip(parts, "qkv", strict=True):
                weights[f"{theirs}.attn1.to_{letter}.{kind}"] = part
    for layer in range(depth):
        weights |= {f"transformer_blocks.{layer}.norm1.emb.{n}": x for n, x in embeddings.items()}
    return {name: np.ascontiguousarray(x, np.float32) for name, x in weights.items()}
