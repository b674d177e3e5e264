"""What a training says of itself when it ends."""

from pathlib import Path

from ..config.training import Train
from ..modeling.adapters import FOLDERS
from ..progress import format_seconds
from ..scoring.figures import FIGURES, shown


def trained_at(output: Path, train: Train) -> dict:
    """Where a run put what it trained."""
    return {FOLDERS[train.method]: output / FOLDERS[train.method]}


def training_facts(output: Path, train: Train, metrics: dict) -> dict:
    """What the report of a training says."""
    facts = {
        "steps": metrics["steps"],
        "trained": f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,} parameters",
        "training loss": f"{metrics['train_loss']:.4f}",
    }
    if "best_step" not in metrics:
        facts["kept"] = "the last step's weights"
    else:
        measure = metrics["validation_measure"]
        best = metrics[f"best_validation_{measure}"]
        facts[f"best validation {FIGURES[measure]}"] = f"{best:.4f} at step {metrics['best_step']}"
    if "validation_at_best_step" in metrics:
        facts["validation at that step"] = shown(metrics["validation_at_best_step"])
    if "wer_regression_max" in metrics:
        above, limit = metrics["validation_at_best_step"]["wer_regression"], metrics["wer_regression_max"]
        facts["WER above the base's"] = f"{above:+.4f} (base {metrics['base_wer']:.4f}), at most {limit:g}"
        if not metrics["within_wer_regression_max"]:
            facts["NOT PASSED"] = "no checkpoint is within validation.wer_regression_max; the one with the lowest WER is kept"
    if metrics["resumed_from_step"]:
        facts["resumed from step"] = metrics["resumed_from_step"]
    return facts | {"time": format_seconds(metrics["seconds"])} | trained_at(output, train)
