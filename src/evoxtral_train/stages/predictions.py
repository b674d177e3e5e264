"""`evoxtral eval-predictions`: score a file of predictions. Needs no model and no torch."""

from pathlib import Path

from ..errors import UsageError
from ..records import Prediction, read_jsonl, row_place
from ..scoring.metrics import evaluate
from ..text.tags import strip_tags


def run(path: Path, samples: int, seed: int) -> dict:
    """Metrics of a JSONL of {id, reference, prediction}; further keys are ignored.

    WER and CER are measured when any prediction holds words. Raises UsageError with file and line.
    """
    rows, lines = [], {}
    for number, content in read_jsonl(path):
        where = row_place(path, number)
        for name in ("id", "reference", "prediction"):
            if not isinstance(content.get(name), str):
                raise UsageError(f"`{name}` is missing or not text", where=where, fix="each row needs id, reference, prediction")
        if content["id"] in lines:
            raise UsageError(f"duplicate id {content['id']!r}, first seen in row {lines[content['id']]}", where=where)
        lines[content["id"]] = number
        rows.append(Prediction(content["id"], content["reference"], content["prediction"]))
    if not rows:
        raise UsageError("no predictions in this file", where=str(path))
    return evaluate(rows, any(strip_tags(row.prediction) for row in rows), samples, seed)
