"""Several processes, started by `accelerate launch`: ranks, splitting work, waiting for each other.

With a single process, the usual case, all of this does nothing. The first process alone writes run folders,
tracking and the terminal; `share` splits the work.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TypeVar

ResultT = TypeVar("ResultT")

_TIMEOUT = timedelta(days=1)  # one process may encode or decode for hours; if one dies, all end at once anyway


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def is_sharded() -> bool:
    """Whether accelerate's config asks for FSDP, which divides the model among the processes."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def join(device: str) -> None:
    """Connect to the other processes: over gloo on the CPU, NCCL on CUDA. `device`: as in the config."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_TIMEOUT)


def leave() -> None:
    """Disconnect from the other processes. A process that just exits may look like a crash."""
    if count() > 1 and "torch" in sys.modules:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def share(items: Iterable[ResultT]) -> Iterator[ResultT]:
    """This process's part of a stream: every `count()`-th item, which spreads similar neighbours evenly."""
    return islice(items, rank(), None, count())


def wait() -> None:
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def first(work: Callable[[], ResultT]) -> ResultT:
    """Run `work()` in the first process only; all processes get its result. If it fails, the others exit silently."""
    if count() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    result, error = None, None
    if is_first():
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - raised again below, once the others know
            error = raised
    exit_code = None if error is None else getattr(error, "exit_code", 1)
    result, exit_code = broadcast_object_list([result, exit_code])
    if error is not None:
        raise error
    if exit_code is not None:
        raise SystemExit(exit_code)
    return result


def gather(items: list[ResultT]) -> list[ResultT]:
    """The items of all processes, in rank order."""
    if count() == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
