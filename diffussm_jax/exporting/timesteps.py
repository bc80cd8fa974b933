"""The embedding of diffusion steps, fitted to the features that `diffusers` has for them.

DiT's features of a step are its cosines and sines at frequencies 10000^(-i / 128), those of
`diffusers` at 10000^(-i / 127). After some hundred steps they are out of phase, so that the same
weights give other vectors. No matrix leads from ones to the others, but only whole steps are asked
for: the two layers are fitted to give, for each of them, the vector that the model has.
"""

import numpy as np

Tensors = dict[str, np.ndarray]

HIDDEN, OUT = "timestep.hidden", "timestep.out"
HALF = 128  # frequencies
RIDGE = 1e-2  # of the features, whose squares add up to some hundred
SMALL_RIDGE = 1e-10  # of the hidden units, relative to the mean of their squares


def fit(tensors: Tensors, num_steps: int) -> tuple[Tensors, float]:
    """Parameters in place of those of the steps' embedding, and the error that is left.

    The error is the largest of any value, relative to the root mean square of all. With as many
    channels as steps it is one of rounding.
    """
    given = {
        name: tensors[name].astype(np.float64)
        for name in (f"{layer}.{kind}" for layer in (HIDDEN, OUT) for kind in ("kernel", "bias"))
    }
    ours, theirs = (features(num_steps, HALF), features(num_steps, HALF - 1))
    wanted = embed(given, ours)
    kernel = _ridge(theirs, ours @ given[f"{HIDDEN}.kernel"], RIDGE)
    hidden = _silu(theirs @ kernel + given[f"{HIDDEN}.bias"])
    hidden = np.concatenate([hidden, np.ones((num_steps, 1))], axis=1)
    out = np.concatenate([given[f"{OUT}.kernel"], given[f"{OUT}.bias"][None]])
    ridge = SMALL_RIDGE * np.square(hidden).sum(axis=0).mean()
    out = out + _ridge(hidden, wanted - hidden @ out, ridge)
    fitted = given | {f"{HIDDEN}.kernel": kernel, f"{OUT}.kernel": out[:-1], f"{OUT}.bias": out[-1]}
    fitted = {name: x.astype(np.float32) for name, x in fitted.items()}
    error = np.abs(embed(fitted, theirs.astype(np.float32)) - wanted).max()
    return fitted, float(error / np.sqrt(np.square(wanted).mean()))


def features(num_steps: int, divisor: int) -> np.ndarray:
    """The cosines, then the sines of steps at frequencies 10000^(-i / divisor), [steps 256]."""
    angles = np.arange(num_steps)[:, None] * 10_000 ** (-np.arange(HALF) / divisor)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def embed(tensors: Tensors, features: np.ndarray) -> np.ndarray:
    """The vectors of steps, in the precision of what is given."""
    hidden = _silu(features @ tensors[f"{HIDDEN}.kernel"] + tensors[f"{HIDDEN}.bias"])
    return hidden @ tensors[f"{OUT}.kernel"] + tensors[f"{OUT}.bias"]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _ridge(inputs: np.ndarray, outputs: np.ndarray, ridge: float) -> np.ndarray:
    """The matrix from inputs to outputs of least squares, its own included by `ridge`."""
    square = inputs.T @ inputs + ridge * np.eye(inputs.shape[1])
    return np.linalg.solve(square, inputs.T @ outputs)
