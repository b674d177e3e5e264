"""Several processes, started by `accelerate launch`: who is first, who does what, waiting for each other.

One process is the ordinary case, in which all of this does nothing. What is written once (run folders,
tracking, the terminal) is the first process's; work is shared out by `share`.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import islice
from typing import TypeVar

ResultT = TypeVar("ResultT")

_PATIENCE = timedelta(days=1)  # one process may encode or decode for hours; a dead one ends them all at once


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def join(device: str) -> None:
    """Meet the other processes. `device`: as in the config; the CPU talks over gloo, CUDA over NCCL."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_PATIENCE)


def leave() -> None:
    """Part from the other processes; one that ends without a word may be taken for a crash."""
    if count() > 1 and "torch" in sys.modules:
        import torch.distributed

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def share(items: Iterable[ResultT]) -> Iterator[ResultT]:
    """This process's part of a stream: every `count()`-th, so that similar neighbours are spread evenly."""
    return islice(items, rank(), None, count())


def wait() -> None:
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def first(work: Callable[[], ResultT]) -> ResultT:
    """`work()` in the first process alone; all get its result. Its error ends the others without a word."""
    if count() == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    result, error = None, None
    if is_first():
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - raised again below, after the others know
            error = raised
    exit_code = None if error is None else getattr(error, "exit_code", 1)
    result, exit_code = broadcast_object_list([result, exit_code])
    if error is not None:
        raise error
    if exit_code is not None:
        raise SystemExit(exit_code)
    return result


def gather(items: list[ResultT]) -> list[ResultT]:
    """The items of all processes, in the order of the processes."""
    if count() == 1:
        return items
    from accelerate.utils import gather_object

    return gather_object(items)
