"""`evoxtral sft`: a LoRA adapter from a packed dataset."""

import time
from pathlib import Path

import torch

from .. import processes
from ..config.training import SftConfig
from ..dataset.augmentation import Augmenter, check_folders
from ..dataset.reader import PackedSplit, has_split
from ..modeling.adapters import add_lora, find_adapter
from ..modeling.bases import open_audio, open_base_of, pick_device
from ..modeling.weights import require_finite_weights, save_errors
from ..progress import format_seconds
from ..runs import Options, Run, check_plan
from ..tracking import Tracker
from ..training.dataset import TrainingSet
from ..training.trainer import train_adapter
from .plans import count_rows, plan_model, plan_steps
from .report import Report


def run(config: SftConfig, options: Options) -> Report:
    """Writes `adapter/` (PEFT format), `checkpoints/` and the metrics."""
    if options.dry_run:
        return plan(config, options)
    processes.join(config.model.device)
    if config.augmentation.probability:
        check_folders(config.augmentation)
    split = PackedSplit(config.dataset, "train")
    base = open_base_of(split, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    sources = [config.dataset, base.folder]
    run = processes.first(lambda: Run.open(config.output, "sft", config.model_dump(mode="json"), inputs, options, sources))
    started = time.monotonic()
    torch.manual_seed(config.train.seed)
    network = add_lora(base.family.load(config.model.dtype), config.lora, config.model)
    if config.train.gradient_checkpointing:
        network.checkpoint_language_model()
    count = network.sizes()
    splits = [split]
    if has_split(config.dataset, "validation"):
        splits.append(PackedSplit(config.dataset, "validation"))
    caches = [open_audio(config, network, base, each) for each in splits]
    weight = config.train.pad_weight
    augmenter = None
    if config.augmentation.probability:
        augmenter = Augmenter(config.augmentation, split, base.family)
    train = TrainingSet(split, None, caches[0], weight, augmenter)
    validation = [TrainingSet(each, None, cache, weight) for each, cache in zip(splits[1:], caches[1:], strict=True)]
    if caches[0]:
        network.drop_audio_path()
    network.place_language_model(pick_device(config.model.device))
    with Tracker(config.tracking, "sft", run.path, config) as tracker:
        measures = train_adapter(
            network, train, next(iter(validation), None), config.train, run.path / "checkpoints", run.resumed, tracker
        )
        metrics = processes.first(lambda: save_adapter(run, network.model, measures | count, started, tracker))
    processes.first(lambda: run.finish(metrics, find_adapter(run.path / "adapter").fingerprint))
    return Report("sft", adapter_facts(config.output, metrics))


def save_adapter(run: Run, model, measures: dict, started: float, tracker: Tracker) -> dict:
    """Save the adapter; returns the metrics. Used by `sft` and `raft train`. Raises EvoxtralError when a weight is not finite."""
    require_finite_weights(model, measures["steps"], "lower train.learning_rate, and start again with --overwrite")
    with save_errors(run.path / "adapter"):
        model.save_pretrained(run.path / "adapter")
    metrics = measures | {"seconds": time.monotonic() - started}
    if torch.cuda.is_available():
        metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    tracker.summary(metrics)
    tracker.artifact(f"{run.output.name}-adapter", "model", sorted((run.path / "adapter").glob("adapter_*")))
    return metrics


def adapter_facts(folder: Path, metrics: dict) -> dict:
    facts = {
        "steps": metrics["steps"],
        "trained": f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,} parameters",
        "training loss": f"{metrics['train_loss']:.4f}",
    }
    if "best_validation_loss" not in metrics:
        facts["kept"] = "the last step's adapter"
    else:
        facts["best validation loss"] = f"{metrics['best_validation_loss']:.4f} at step {metrics['best_step']}"
    if metrics["resumed_from_step"]:
        facts["resumed from step"] = metrics["resumed_from_step"]
    return facts | {"time": format_seconds(metrics["seconds"]), "adapter": folder / "adapter"}


def plan(config: SftConfig, options: Options) -> Report:
    """Rows, steps and sizes, without weights: for the 4B model this needs neither network nor GPU."""
    check_plan(config.output, "sft", config.model_dump(mode="json"), options)
    facts = plan_model(config.model, config.lora) | plan_steps(count_rows(config.dataset, "train"), config.train)
    return Report("plan: sft", facts | {"output": config.output})
