"""When a GPU runs out of memory, do the same work in smaller batches, and print a note."""

import gc
import sys

import torch

from ..errors import EvoxtralError


def shrink(held: int, smaller: int | None, unit: str) -> int:
    """Free memory after `held` rows or tokens were too many, and continue with `smaller`.

    Call it outside of `except`, whose traceback keeps the tensors alive. Raises EvoxtralError when
    no smaller batch is possible.
    """
    gc.collect()
    torch.cuda.empty_cache()
    if not smaller:
        raise EvoxtralError(
            f"out of memory with {held} {unit} at once, and no smaller batch is possible",
            fix="use a device with more memory, shorter clips, or fewer candidates and max_new_tokens",
        )
    print(f"out of memory with {held} {unit} at once; continuing with {smaller}", file=sys.stderr, flush=True)
    return smaller
