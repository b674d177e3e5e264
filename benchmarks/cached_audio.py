"""Speedup of the audio cache: a training step from cached audio against the stock forward.

Both run alternately on the same batches of the demo's packed dataset, in one process.

    python benchmarks/cached_audio.py [--dataset runs/demo/packed] [--rounds 7] [--batches 6]
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from measuring import in_turn, machine, ratio

from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Lora
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.families.checkpoint import load_processor
from evoxtral_train.families.realtime.clock import Clock
from evoxtral_train.families.realtime.model import base_fingerprint, load_model, stock
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.training.dataset import Collator, TrainingSet


def steps(model, optimizer, rows: TrainingSet, collate: Collator, order: list[int], size: int) -> None:
    for start in range(0, len(order), size):
        model(**collate([rows[index] for index in order[start : start + size]]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


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
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    cache = open_cache(stock(model), torch.device("cpu"), base_fingerprint(Path(arguments.base)), split, clock)
    rows = {"stock forward": TrainingSet(split, clock), "cached audio": TrainingSet(split, clock, cache=cache)}
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    order, size = order[: arguments.batches * arguments.batch_size], arguments.batch_size
    ways = {name: partial(steps, model, optimizer, way_rows, Collator(clock), order, size) for name, way_rows in rows.items()}
    seconds = in_turn(ways, arguments.rounds)
    print(f"LoRA training step, tiny base, {split.layout}: {machine()}")
    for name, times in seconds.items():
        print(f"  {name:<14} {1000 * statistics.median(times) / arguments.batches:.0f} ms per step of {size}")
    print(f"  ratio          {ratio(*seconds.values())}")


if __name__ == "__main__":
    main()
