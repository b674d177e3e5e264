"""Weights that are loaded or saved must be finite, and complete on disk.

A weight or a feature that is NaN or infinite spreads to everything computed from it. An adapter of NaNs saves, loads and decodes
without an error: it then always writes the same token.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import EvoxtralError
from ..files import disk_errors


def non_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """`3 of 40 weights, the first in layers.0.lora_A` if a named tensor contains NaN or infinity; None if none does."""
    total = bad = 0
    first = None
    for name, tensor in tensors:
        tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # this process's shard
        count = tensor.numel() - int(torch.isfinite(tensor).sum())
        total, bad = total + tensor.numel(), bad + count
        first = name if count and first is None else first
    return f"{bad:,} of {total:,} weights, the first in {first}" if bad else None


def require_finite_weights(model: torch.nn.Module, step: int, fix: str) -> None:
    """Raises EvoxtralError when a trained weight is not finite after `step`."""
    found = non_finite((name, each) for name, each in model.named_parameters() if each.requires_grad)
    if found:
        raise EvoxtralError(f"after step {step} the weights are not finite ({found})", fix=fix)


@contextmanager
def save_errors(path: Path) -> Iterator[None]:
    """On a full disk, torch.save raises RuntimeError and safetensors its own error."""
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
