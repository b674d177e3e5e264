"""`thresholds.json`: the thresholds that `evoxtral calibrate` fitted for an adapter, beside its weights.

The file names the adapter by its fingerprint, so thresholds of other weights are refused, never used. `sft --overwrite` and its
like remove the file together with the adapter that it was fitted for.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import RowError, UsageError
from ..files import write_atomic
from ..reading import parse_json, why_not_a_file
from ..records import typed_row
from ..scoring.tag_filter import Thresholds
from .adapters import Adapter

THRESHOLDS = "thresholds.json"
_AGAIN = "fit them again with: evoxtral calibrate … --overwrite; or remove the file"


@dataclass(frozen=True)
class Calibration:
    """The content of `thresholds.json`. `adapter`, `dataset`: fingerprints. `split`, `clips`: what they were fitted on. `aim`: in
    words.

    `before` and `after`: {micro_f1, micro_precision, micro_recall, false_tags_per_untagged_clip} of that split without and with
    the thresholds. `held_out`: the same, but each clip filtered with thresholds that were fitted without it."""

    adapter: str
    dataset: str
    split: str
    clips: int
    aim: str
    thresholds: dict
    before: dict[str, float | None]
    after: dict[str, float | None]
    held_out: dict[str, float | None]


def find_thresholds(adapter: Adapter) -> Thresholds | None:
    """The thresholds fitted for this adapter; None if there are none. Raises UsageError as `find_calibration` does."""
    calibration = find_calibration(adapter)
    return Thresholds.from_json(calibration.thresholds) if calibration else None


def require_thresholds(adapter: Adapter) -> Thresholds:
    """`find_thresholds`. Raises UsageError also if there are none."""
    thresholds = find_thresholds(adapter)
    if thresholds is None:
        fix = "fit them with: evoxtral calibrate …"
        what = f"no thresholds were fitted for this adapter ({THRESHOLDS} is missing)"
        raise UsageError(what, where=str(adapter.folder), fix=fix)
    return thresholds


def find_calibration(adapter: Adapter) -> Calibration | None:
    """The content of an adapter's `thresholds.json`; None if there is none.

    Raises UsageError if the file cannot be read or is malformed, or if it was fitted for another adapter."""
    path = adapter.folder / THRESHOLDS
    reason = why_not_a_file(path)
    if reason == "does not exist":
        return None
    try:
        if reason:
            raise RowError(reason)
        content = parse_json(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise RowError("it is not a JSON object")
        calibration = typed_row(Calibration, content)
        Thresholds.from_json(calibration.thresholds)
    except (OSError, ValueError, RowError) as error:
        raise UsageError(f"these thresholds cannot be read: {error}", where=str(path), fix=_AGAIN) from None
    if calibration.adapter != adapter.fingerprint:
        what = f"fitted for another adapter (fingerprint {calibration.adapter}) than the one here ({adapter.fingerprint})"
        raise UsageError(what, where=str(path), fix=_AGAIN)
    return calibration


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write `thresholds.json` into an adapter's folder; returns its path."""
    path = folder / THRESHOLDS
    write_atomic(path, json.dumps(asdict(calibration), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path
