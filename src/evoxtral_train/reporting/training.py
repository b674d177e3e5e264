"""What a training says of itself when it ends."""

from pathlib import Path

from ..progress import format_seconds
from ..scoring.figures import FIGURES, shown


def adapter_facts(output: Path, metrics: dict) -> dict:
    """What the report of a training says."""
    facts = {
        "steps": metrics["steps"],
        "trained": f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,} parameters",
        "training loss": f"{metrics['train_loss']:.4f}",
    }
    if "best_step" not in metrics:
        facts["kept"] = "the last step's adapter"
    else:
        measure = metrics["validation_measure"]
        best = metrics[f"best_validation_{measure}"]
        facts[f"best validation {FIGURES[measure]}"] = f"{best:.4f} at step {metrics['best_step']}"
    if "validation_at_best_step" in metrics:
        facts["validation at that step"] = shown(metrics["validation_at_best_step"])
    if metrics["resumed_from_step"]:
        facts["resumed from step"] = metrics["resumed_from_step"]
    return facts | {"time": format_seconds(metrics["seconds"]), "adapter": output / "adapter"}
