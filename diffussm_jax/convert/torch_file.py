"""Files of `torch.save`, read where PyTorch is installed."""

from pathlib import Path
from typing import Any

from diffussm_jax.errors import UserError
from diffussm_jax.files import sha256_of


def read_torch(path: Path) -> tuple[dict[str, Any], str]:
    """The tensors of a file of `torch.save` by name, and its SHA-256. No code in it is run.

    Raises:
        UserError: the file cannot be read, or PyTorch is not installed.
    """
    try:
        import torch

        return torch.load(path, map_location="cpu", weights_only=True), sha256_of(path)
    except ImportError as error:
        raise UserError("PyTorch is needed: pip install -e '.[parity]'") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}") from error
