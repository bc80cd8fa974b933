"""Rules of the names of data sets."""

from diffussm_jax.config.parsing import require
from diffussm_jax.config.paths import FOLDER, HUB, PARQUET, is_parquet, parse_hub_name
from diffussm_jax.config.schema import Config


def check_data(config: Config) -> None:
    """Check that the name of a data set is complete, and that its columns belong to parquet."""
    data = config.data
    require(data.name not in (FOLDER, PARQUET), "data.name", "name a folder", data.name)
    is_local = not data.name.startswith(PARQUET) or "://" not in data.name
    demand = "name a folder on a disk for parquet, or hf:USER/NAME: copy it there first"
    require(is_local, "data.name", demand, data.name)
    is_local = data.cache_dir is None or "://" not in data.cache_dir
    require(is_local, "data.cache_dir", "be a folder on a disk", data.cache_dir)
    fits = not data.name.startswith(HUB) or parse_hub_name(data.name) is not None
    require(fits, "data.name", "be hf:USER/NAME[@REVISION][:CONFIG] for the hub", data.name)
    for field in ("image_column", "label_column"):
        column = getattr(data, field)
        demand = "be None unless data.name is parquet:PATH or hf:USER/NAME"
        require(column is None or is_parquet(data.name), f"data.{field}", demand, column)
