"""`evoxtral sft`: a LoRA adapter from a packed dataset."""

import time
from pathlib import Path

import torch

from ..config.schema import SftConfig
from ..data.packing import PackedSplit, has_split
from ..errors import UsageError
from ..modeling.adapters import adapter_bytes, add_lora, checkpoint_language_model, find_adapter
from ..modeling.realtime import describe_model, load_model, sizes
from ..progress import format_seconds
from ..runs import Options, Run, check_output
from ..tracking import Tracker
from ..training.dataset import TrainingSet
from ..training.trainer import optimizer_steps, train_adapter
from .inputs import open_base
from .report import Report, gigabytes


def run(config: SftConfig, options: Options) -> Report:
    """Writes `adapter/` (PEFT format), `checkpoints/` and the metrics."""
    if options.dry_run:
        return plan(config, options)
    split = PackedSplit(config.dataset, "train")
    base = open_base(config.model, split)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    run = Run.open(config.output, "sft", config.model_dump(mode="json"), inputs, options)
    started = time.monotonic()
    torch.manual_seed(config.train.seed)
    model = add_lora(load_model(config.model), config.lora, config.model)
    if config.train.gradient_checkpointing:
        checkpoint_language_model(model)
    train = TrainingSet(split, base.clock)
    validation = None
    if has_split(config.dataset, "validation"):
        validation = TrainingSet(PackedSplit(config.dataset, "validation"), base.clock)
    with Tracker(config.tracking, "sft", config.output, config) as tracker:
        measures = train_adapter(
            model, base.clock, train, validation, config.train, run.path / "checkpoints", run.resumed, tracker
        )
        metrics = finish_adapter(run, model, measures, started, tracker)
    return Report("sft", adapter_facts(run.path, metrics))


def finish_adapter(run: Run, model, measures: dict, started: float, tracker: Tracker) -> dict:
    """Save the adapter, then the metrics, then the marker. Used by `sft` and `raft train`."""
    model.save_pretrained(run.path / "adapter")
    metrics = measures | sizes(model) | {"seconds": time.monotonic() - started}
    if torch.cuda.is_available():
        metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    tracker.summary(metrics)
    tracker.artifact(f"{run.path.name}-adapter", "model", sorted((run.path / "adapter").glob("adapter_*")))
    fingerprint = find_adapter(run.path / "adapter").fingerprint
    run.finish(metrics, fingerprint)
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
    model, source = describe_model(config.model.base, config.model.revision)
    model = add_lora(model.requires_grad_(False), config.lora, config.model)
    count = sizes(model)
    width = getattr(torch, config.model.dtype).itemsize
    frozen = count["parameters"] - count["trainable_parameters"]
    facts = {
        "model": f"{config.model.base}, shape from {source}",
        "parameters": f"{frozen:,} frozen",
        "trainable parameters": f"{count['trainable_parameters']:,}",
        "weights": f"{gigabytes(frozen * width)} in {config.model.dtype}",
        "adapter": f"{gigabytes(adapter_bytes(model))} on disk",
    }
    facts |= plan_rows(config.dataset, "train", config.train)
    facts["output"] = config.output
    _check_resumable(config, options)
    return Report("plan: sft", facts)


def plan_rows(dataset: Path, split: str, train) -> dict:
    batch = f"{train.batch_size} × {train.gradient_accumulation}"
    try:
        rows = len(PackedSplit(dataset, split))
    except UsageError as error:
        return {"rows": f"unknown: {error}", "steps": f"unknown: {train.epochs:g} epochs at batch {batch}"}
    return {"rows": rows, "steps": f"{optimizer_steps(rows, train)} ({train.epochs:g} epochs at batch {batch})"}


def _check_resumable(config: SftConfig, options: Options) -> None:
    """A dry run refuses what the real run would refuse, as far as that can be known without inputs."""
    if not options.resume:
        check_output(config.output, "sft", config.model_dump(mode="json"), {}, options)
