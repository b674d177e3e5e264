"""The Trainer's checkpoints on disk; readable without torch."""

import json
from pathlib import Path

_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "adapter_model.safetensors")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint with all its files; one that a kill cut short is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if all((path / name).is_file() for name in _FILES)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def log_of(checkpoint: Path) -> list[dict]:
    """What the Trainer logged up to a checkpoint: {step, loss} and {step, eval_loss}, among others."""
    return json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]
