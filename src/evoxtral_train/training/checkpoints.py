"""The Trainer's checkpoints on disk; readable without torch.

The Trainer writes `trainer_state.json` last. A checkpoint is complete when that and every other file can be read to its end.
After a kill or a full disk, a file is missing or cut short.

    LoRA              adapter_model.safetensors                               optimizer.pt
    full fine-tune    model.safetensors: what is trained                      optimizer.pt
    with FSDP         pytorch_model_fsdp.bin, or pytorch_model_fsdp_0/        optimizer.bin, or optimizer_0/
"""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "pytorch_model_fsdp.bin", "pytorch_model_fsdp_0/.metadata")
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_0/.metadata")
_FILES = (_WEIGHTS, _OPTIMIZER, ("scheduler.pt",), ("rng_state*.pth",), ("trainer_state.json",))


def last_whole_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """(the latest complete checkpoint, {later checkpoint: its fault})."""
    faults: dict[Path, str] = {}
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        fault = fault_of(path)
        if fault is None:
            return path, faults
        faults[path] = fault
    return None, faults


def step_of(checkpoint: Path) -> int:
    """checkpoint-50 -> 50"""
    return int(checkpoint.name.rpartition("-")[2])


def fault_of(checkpoint: Path) -> str | None:
    """The fault: which file is missing or cannot be read; None when the checkpoint is complete."""
    for names in _FILES:
        paths = sorted(path for name in names for path in checkpoint.glob(name))
        if not paths:
            return f"{' or '.join(names[:2])} is missing"
        for path in paths:
            if not _is_whole(path):
                return f"{path.name} is cut short or damaged"
    return None


def _is_whole(path: Path) -> bool:
    try:
        if path.name == ".metadata":  # of shards: written once all of them are on disk
            return path.stat().st_size > 0
        if path.suffix == ".json":
            return "log_history" in json.loads(path.read_text("utf-8"))
        if path.suffix == ".safetensors":
            with safe_open(path, "np"):  # raises if the file is shorter than its header says
                return True
        with zipfile.ZipFile(path) as file:  # the format of torch.save, with a checksum of each tensor
            return file.testzip() is None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile):
        return False


def log_of(checkpoint: Path) -> list[dict]:
    """The Trainer's log up to a checkpoint: {step, loss} and {step, eval_loss}, among others."""
    return json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["log_history"]
