"""Which device a process uses."""

import os

import torch

from ..errors import UsageError


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one; of several processes each takes its own GPU. Raises UsageError
    for a device that is not here."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{own}"
    try:
        torch.empty(0, device=device).cpu()  # `meta` makes what cannot be read back
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        fix = "set model.device to auto" if own == 0 else "start as many processes as there are GPUs, or set model.device to cpu"
        raise UsageError(f"device {device!r} cannot be used: {reason}", fix=fix) from None
    return torch.device(device)
