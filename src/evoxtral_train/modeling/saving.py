"""What goes wrong when weights are written, said as `files.disk_errors` says it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import EvoxtralError
from ..files import disk_errors


@contextmanager
def save_errors(path: Path) -> Iterator[None]:
    """For a full disk torch.save raises RuntimeError, and safetensors an error of its own."""
    try:
        with disk_errors(path):
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, SafetensorError) as error:
        raise EvoxtralError(
            f"could not be written: {str(error).splitlines()[0]}",
            where=str(path),
            fix="free some space or choose another `output`, then resume with --resume",
        ) from error
