"""The 1,797 handwritten digits that scikit-learn ships, as a TFDS data set: no download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from diffussm_jax.data.prepared import LocalBuilder

_DESCRIPTION = """
8x8 grey images of handwritten digits with 17 ink levels, 0 (paper) to 16, stored as 0 .. 255.
Every sixth image is held out as the test split.
"""

_CITATION = """
@misc{alpaydin1998optical,
  title={Optical Recognition of Handwritten Digits},
  author={Alpaydin, E. and Kaynak, C.},
  year={1998},
  howpublished={UCI Machine Learning Repository},
  doi={10.24432/C50P49}
}
"""

INK_LEVELS = 16

Examples = Iterator[tuple[int, dict[str, Any]]]


class Builder(LocalBuilder):
    """Builder of the `digits` data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool) -> Examples:
        digits = load_digits()
        images = np.round(digits.images * (255 / INK_LEVELS)).astype(np.uint8)[..., None]
        for index, (image, label) in enumerate(zip(images, digits.target)):
            if (index % 6 == 5) == held_out:
                yield index, {"image": image, "label": int(label)}
