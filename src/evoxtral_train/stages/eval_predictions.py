"""`evoxtral eval-predictions`: score a file of predictions. Needs no model and no torch."""

from pathlib import Path

from ..config.evaluation import Bootstrap
from ..errors import RowError, UsageError
from ..reading import shown
from ..records import Prediction, read_jsonl_or_stream, row_place, typed_row
from ..scoring.metrics import evaluate
from ..text.tags import strip_tags


def run(path: Path, bootstrap: Bootstrap) -> dict:
    """Metrics of a JSONL of {id, reference, prediction}, plus {speaker} if that is the unit; other keys are ignored.

    WER and CER are measured if any prediction has words. Raises UsageError with file and line.
    """
    rows, lines = [], {}
    for number, content in read_jsonl_or_stream(path):
        try:
            rows.append(_prediction(content))
            if rows[-1].id in lines:
                raise RowError(f"duplicate id {shown(rows[-1].id)}, first seen in row {lines[rows[-1].id]}")
        except RowError as error:
            raise UsageError(str(error), where=row_place(path, number)) from None
        lines[rows[-1].id] = number
    if not rows:
        raise UsageError("no predictions in this file", where=str(path))
    try:
        return evaluate(rows, any(strip_tags(row.prediction) for row in rows), bootstrap)
    except ValueError as error:
        raise UsageError(str(error), where=str(path), fix="add `speaker` to each row, or use --unit clip") from None


def _prediction(content: dict) -> Prediction:
    for name in ("id", "reference", "prediction"):
        if not isinstance(content.get(name), str):
            raise RowError(f"`{name}` is missing or not text", fix="each row needs id, reference, prediction")
    known = ("id", "reference", "prediction", "speaker")
    return typed_row(Prediction, {name: content[name] for name in known if name in content})
