"""What the audio cache saves: a training step from cached audio against the stock forward.

Both ways run on the same batches of the demo's packed dataset, in turn, in one process; the ratio
of their times is printed for each round, so that its spread can be seen.

    python benchmarks/cached_audio.py [--dataset runs/demo/packed] [--rounds 7] [--batches 6]
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from evoxtral_train.config.schema import Lora, Model
from evoxtral_train.data.clock import Clock
from evoxtral_train.data.packing import PackedSplit
from evoxtral_train.data.processor import load_processor
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.modeling.realtime import base_fingerprint, load_model, stock
from evoxtral_train.training.dataset import Collator, TrainingSet


def step_seconds(model, optimizer, rows: TrainingSet, collate: Collator, order: list[int], size: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(order), size):
        model(**collate([rows[index] for index in order[start : start + size]]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("runs/demo/packed"))
    parser.add_argument("--base", default="data/tiny-base")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    config = Model(base=arguments.base, dtype="float32", device="cpu")
    clock, split = Clock.of(load_processor(Path(arguments.base))), PackedSplit(arguments.dataset, "train")
    torch.manual_seed(0)
    model = add_lora(load_model(config), Lora(), config).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    cache = open_cache(stock(model), torch.device("cpu"), base_fingerprint(Path(arguments.base)), split, clock)
    ways = {"stock forward": TrainingSet(split, clock), "cached audio": TrainingSet(split, clock, cache=cache)}
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    order = order[: arguments.batches * arguments.batch_size]
    for rows in ways.values():
        step_seconds(model, optimizer, rows, Collator(clock), order[: arguments.batch_size], arguments.batch_size)
    seconds = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, rows in ways.items():
            seconds[name].append(step_seconds(model, optimizer, rows, Collator(clock), order, arguments.batch_size))
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    for name, times in seconds.items():
        print(f"{name:<14} {1000 * statistics.median(times) / arguments.batches:.0f} ms per step of {arguments.batch_size}")
    print(
        f"ratio          median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"
    )


if __name__ == "__main__":
    main()
