"""Draw docs/images/objectives.png: `python -m docs.draw_paths`.

The paths are exact: data of two Gaussians on a line, whose velocity is known in closed form.
"""

import itertools
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PICTURE = Path(__file__).parent / "images" / "objectives.png"
MEANS, STD = np.array([-1.0, 1.2]), 0.15
NUM_STEPS = 2000
START = np.linspace(-1.9, 1.9, 14)  # noise


def posterior_mean(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x0 | x = alpha x0 + sigma eps]."""
    variance = (alpha * STD) ** 2 + sigma**2
    offset = x[:, None] - alpha * MEANS
    odds = np.exp(-0.5 * offset**2 / variance)
    means = MEANS + alpha * STD**2 / variance * offset
    return (odds * means).sum(axis=1) / odds.sum(axis=1)


def paths(name: str) -> np.ndarray:
    """x at each t from 1 to 0, [steps + 1, paths]."""
    x, t = [START], np.linspace(1, 0, NUM_STEPS + 1)
    for now, then in itertools.pairwise(t):
        (alpha, sigma), (next_alpha, next_sigma) = (coefficients(name, s) for s in (now, then))
        x0 = posterior_mean(x[-1], alpha, sigma)
        x.append(next_alpha * x0 + next_sigma * (x[-1] - alpha * x0) / sigma)
    return np.stack(x)


def coefficients(name: str, t: float) -> tuple[float, float]:
    """alpha and sigma at t: on an arc for DDPM, on a line for a flow."""
    angle = np.pi / 2 * t
    return (np.cos(angle), np.sin(angle)) if name == "gaussian" else (1 - t, t)


def draw(axes: Axes, title: str, x: np.ndarray, *, calls: int, in_one: bool = False) -> None:
    """Draw paths, and the places at which the network is called."""
    t = np.linspace(1, 0, len(x))
    colours = ["C0" if end < 0 else "C1" for end in x[-1]]
    for path, colour in zip(x.T, colours):
        ends = [0, -1] if in_one else slice(None)
        axes.plot(t[ends], path[ends], color=colour, linewidth=1, alpha=0.8)
        if in_one:
            axes.plot(t, path, color="0.85", linewidth=0.8, zorder=0)
        places = np.linspace(0, len(t) - 1, calls + 1).astype(int)[:-1]
        axes.plot(t[places], path[places], ".", color=colour, markersize=4)
    axes.set(title=title, xlim=(1.03, -0.03), xlabel="t: noise to image", xticks=[1, 0.5, 0])
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
    draw(axes[0], "gaussian: 20 calls", paths("gaussian"), calls=20)
    flow = paths("flow")
    draw(axes[1], "flow: 20 calls", flow, calls=20)
    draw(axes[2], "mean flow: 1 call", flow, calls=1, in_one=True)
    axes[0].set_ylabel("x")
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    main()
