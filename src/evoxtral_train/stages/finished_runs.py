"""Finished runs of `probe` and `eval`, as other stages read them. Needs no torch."""

from pathlib import Path

from ..runs import require_complete, require_unedited

PROBE_HINT = "evoxtral probe …"


def probe_files(folder: Path) -> list[Path]:
    """What a probe's fingerprint is of: its weights, its probabilities and its predictions."""
    return [folder / "probe.safetensors", *folder.glob("probabilities/*.jsonl"), *folder.glob("predictions/*.jsonl")]


def require_probe(folder: Path) -> str:
    """The run's fingerprint. Raises UsageError when it is not finished, or when its results were edited."""
    fingerprint = require_complete(folder, "probe", PROBE_HINT)
    require_unedited(folder, probe_files(folder), fingerprint)
    return fingerprint


def require_evaluation(folder: Path) -> str:
    """Like `require_probe`, for a run of `eval`."""
    fingerprint = require_complete(folder, "eval", "evoxtral eval …")
    require_unedited(folder, [*folder.glob("predictions/*.jsonl"), folder / "table.md"], fingerprint)
    return fingerprint
