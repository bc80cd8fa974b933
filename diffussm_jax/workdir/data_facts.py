"""data.json: which images a run learns from.

Its keys are those of `Source.facts`.
"""

import dataclasses
from pathlib import Path
from typing import Any

from diffussm_jax.config import parsing
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.files import write_json

DATA_FILE = "data.json"


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """What the program reads of data.json; the file may say more.

    Attributes:
        class_names: the name of each label; None where the data has no labels.
        source: what the images are and where they come from.
        fingerprint: of the images; None in files of earlier versions.
        autoencoder_sha256: of the weights that encoded the images; None for pixels.
    """

    class_names: list[str] | None = None
    source: str = "not recorded"
    fingerprint: Fingerprint | None = None
    autoencoder_sha256: str | None = None


def write_data_facts(workdir: Path, facts: dict[str, Any]) -> None:
    """Keep what a source says of itself beside the run that learns from it."""
    write_json(workdir / DATA_FILE, facts)


def read_data_facts(workdir: Path) -> DataFacts:
    """Read what `write_data_facts` kept; the defaults where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return parsing.read_as(workdir / DATA_FILE, DataFacts, mend="remove it")
    except (FileNotFoundError, NotADirectoryError):
        return DataFacts()


def read_all_facts(workdir: Path) -> dict[str, Any]:
    """Read all of data.json, beyond `DataFacts`; {} where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return parsing.read_as(workdir / DATA_FILE, dict, mend="remove it")
    except (FileNotFoundError, NotADirectoryError):
        return {}
