"""An adapter's training history, from the runs in its folder: losses by step, and the rewards of RAFT's rounds."""

from pathlib import Path

from ..records import ScoredCandidate, iter_rows
from ..reporting.results import Training
from ..training.checkpoints import last_whole_checkpoint, log_of


def training_of(adapters: dict[str, Path]) -> Training:
    """`adapters`: system -> the folder in its config. Missing runs are left out."""
    losses, rewards = {}, {}
    for name, path in adapters.items():
        folder = path if (path / "checkpoints").is_dir() else path.parent
        rounds = sorted(path.parent.glob("round-*"), key=lambda round_: int(round_.name.rpartition("-")[2]))
        if path.name == "result" and rounds:
            for round_ in rounds:
                losses |= _losses(f"{name}, {round_.name}", round_ / "train")
        else:
            losses |= _losses(name, folder)
            rounds = [path.parent] if (path.parent / "scores").is_dir() else []
        for round_ in rounds:
            scores = round_ / "scores" / "scores.jsonl"
            if scores.is_file():
                rewards[round_.name] = [row.reward for row in iter_rows(scores, ScoredCandidate)]
    return Training(losses, rewards)


def _losses(name: str, folder: Path) -> dict[str, list[tuple[float, float]]]:
    checkpoint, _ = last_whole_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return {}
    log = log_of(checkpoint)
    training = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    validation = [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
    return {name: training} | ({f"{name}, validation": validation} if validation else {})
