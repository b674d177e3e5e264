"""What to do when a GPU runs out of memory: the same work in smaller batches, and say so."""

import gc
import sys

import torch

from ..errors import EvoxtralError


def shrink(held: int, smaller: int | None, unit: str) -> int:
    """Free what can be freed after `held` rows or tokens were too much, and go on with `smaller`.

    Call it outside of `except`, whose traceback keeps the tensors alive. Raises EvoxtralError when
    there is nothing smaller.
    """
    gc.collect()
    torch.cuda.empty_cache()
    if not smaller:
        raise EvoxtralError(
            f"out of memory with {held} {unit} at once, and no smaller batch is possible",
            fix="use a device with more memory, shorter clips, or fewer candidates and max_new_tokens",
        )
    print(f"out of memory with {held} {unit} at once; going on with {smaller}", file=sys.stderr, flush=True)
    return smaller
