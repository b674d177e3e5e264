"""Speedup of the audio cache: a training step from cached audio against the stock forward.

Both run alternately on the same batches of the demo's packed dataset, in one process.

    python benchmarks/cached_audio.py [--dataset runs/demo/packed] [--rounds 7] [--batches 6]
    python benchmarks/cached_audio.py --base data/tiny-offline-base --dataset runs/demo-offline/packed
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
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.modeling.audio_cache import open_cache
from evoxtral_train.modeling.bases import open_base
from evoxtral_train.training.dataset import TrainingSet


def steps(network, optimizer, rows: TrainingSet, order: list[int], size: int) -> None:
    for start in range(0, len(order), size):
        network.model(**network.collate([rows[index] for index in order[start : start + size]]))["loss"].backward()
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
    base, split = open_base(config), PackedSplit(arguments.dataset, "train")
    torch.manual_seed(0)
    network = add_lora(base.family.load("float32"), Lora(), config)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in network.model.train().parameters() if parameter.requires_grad], lr=1e-4
    )
    cache = open_cache(network, torch.device("cpu"), base.fingerprint, split)
    rows = {"stock forward": TrainingSet(split), "cached audio": TrainingSet(split, cache=cache)}
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0)).tolist()
    order, size = order[: arguments.batches * arguments.batch_size], arguments.batch_size
    ways = {name: partial(steps, network, optimizer, way_rows, order, size) for name, way_rows in rows.items()}
    seconds = in_turn(ways, arguments.rounds)
    print(f"LoRA training step, {arguments.base}, {split.layout.name}: {machine()}")
    for name, times in seconds.items():
        print(f"  {name:<14} {1000 * statistics.median(times) / arguments.batches:.0f} ms per step of {size}")
    print(f"  ratio          {ratio(*seconds.values())}")


if __name__ == "__main__":
    main()
