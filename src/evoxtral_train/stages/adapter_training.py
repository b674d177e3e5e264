"""What `sft` and `raft train` share: from a network with an adapter and its rows to a saved adapter and its report."""

from pathlib import Path

import torch

from .. import processes
from ..config.training import RaftConfig, SftConfig
from ..families.network import Network
from ..modeling.adapters import find_adapter
from ..modeling.audio_cache import CachedAudio
from ..modeling.devices import pick_device
from ..modeling.finite import require_finite_weights
from ..modeling.saving import save_errors
from ..progress import format_seconds
from ..training.dataset import TrainingSet
from ..training.trainer import train_adapter
from .jobs import Work


def train_and_save(
    work: Work, config: SftConfig | RaftConfig, network: Network, cache: CachedAudio | None, train: TrainingSet,
    validation: TrainingSet | None = None,
) -> dict:  # fmt: skip
    """Train the adapter on the network and save it to `adapter/`; returns the metrics. `cache`: what `train` reads its audio
    from; with one the audio path is freed. Raises EvoxtralError when a weight is not finite."""
    sizes = network.sizes()
    if config.train.gradient_checkpointing:
        network.checkpoint_language_model()
    if cache:
        network.drop_audio_path()
    network.place_language_model(pick_device(config.model.device))
    measures = train_adapter(network, train, validation, config.train, work.path / "checkpoints", work.run.resumed, work.tracker)
    return processes.first(lambda: _save(work, network, measures | sizes))


def _save(work: Work, network: Network, measures: dict) -> dict:
    folder = work.path / "adapter"
    require_finite_weights(network.model, measures["steps"], "lower train.learning_rate, and start again with --overwrite")
    with save_errors(folder):
        network.model.save_pretrained(folder)
    metrics = measures | {"seconds": work.seconds()}
    if torch.cuda.is_available():
        metrics["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    work.tracker.summary(metrics)
    work.tracker.artifact(f"{work.run.output.name}-adapter", "model", sorted(folder.glob("adapter_*")))
    work.done(metrics, find_adapter(folder).fingerprint)
    return metrics


def adapter_facts(output: Path, metrics: dict) -> dict:
    """What the report of a training says."""
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
    return facts | {"time": format_seconds(metrics["seconds"]), "adapter": output / "adapter"}
