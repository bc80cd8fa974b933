"""How good are the demo's digits?

python -m benchmarks.digits runs/digits

Reads what training and `--mode=sample` left in a work directory, prints three figures and draws the
loss curve:
- agreement: share of samples that a 3-nearest-neighbour classifier, fitted on the real digits,
  gives the class that was asked for;
- variance: mean within-class variance of a pixel over that of the real digits (class means have 0);
- copies: share of samples equal to a real image at its 17 ink levels.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The three figures of uint8 samples [b 8 8 1] and the classes that they were drawn for."""
    digits = load_digits()
    samples = np.round(images.reshape(len(images), 64) / 255 * 16)
    classifier = KNeighborsClassifier(3).fit(digits.data, digits.target)
    copies = (samples[:, None] == digits.data[None]).all(axis=-1).any(axis=1)
    real_variance = within_class_variance(digits.data, digits.target)
    return {
        "agreement": float(np.mean(classifier.predict(samples) == labels)),
        "variance": within_class_variance(samples, labels) / real_variance,
        "copies": float(np.mean(copies)),
    }


def within_class_variance(pixels: np.ndarray, labels: np.ndarray) -> float:
    """The variance of a pixel among images of one class, averaged over pixels and classes."""
    return float(np.mean([pixels[labels == y].var(axis=0) for y in np.unique(labels)]))


def plot_loss(workdir: Path) -> Path:
    """Draw the errors in training and on held-out images over the steps of `metrics.jsonl`.

    They are those before any weight: adaptive weights make every loss near 1.
    """
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, label, style in (("mse", "training", "-"), ("eval_mse", "held out (EMA)", "o")):
        points = [(event["step"], event[name]) for event in events if name in event]
        axes.plot(*zip(*points), style, label=label)
    axes.set(xlabel="step", ylabel="mean square error", ylim=(0, None))
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(workdir / "loss.png", dpi=150)
    return workdir / "loss.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workdir", type=Path)
    workdir = parser.parse_args().workdir
    with np.load(workdir / "samples" / "samples.npz") as samples:
        figures = measure(samples["arr_0"], samples["arr_1"])
    agreement, copies = (f"{figures[name]:.1%}" for name in ("agreement", "copies"))
    print(f"asked-for class, by 3 nearest neighbours: {agreement}  (wanted: 95 % or more)")
    variance = f"{figures['variance']:.2f}"
    print(f"within-class variance over the real one:  {variance}   (wanted: 0.6 or more)")
    print(f"copies of real images:                    {copies}   (wanted: 1 % or less)")
    print(f"loss curve: {plot_loss(workdir)}")
    print(f"samples:    {workdir / 'samples' / 'samples.png'}")


if __name__ == "__main__":
    main()
