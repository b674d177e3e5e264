"""`evoxtral eval-predictions`: score a file of predictions. Needs no model and no torch."""

from pathlib import Path

from ..config.schema import Bootstrap
from ..errors import UsageError
from ..records import Prediction, read_jsonl, row_place
from ..scoring.metrics import evaluate
from ..text.tags import strip_tags


def run(path: Path, bootstrap: Bootstrap) -> dict:
    """Metrics of a JSONL of {id, reference, prediction}, and {speaker} where that is the unit; further keys are ignored.

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
        rows.append(Prediction(content["id"], content["reference"], content["prediction"], speaker=content.get("speaker")))
    if not rows:
        raise UsageError("no predictions in this file", where=str(path))
    try:
        return evaluate(rows, any(strip_tags(row.prediction) for row in rows), bootstrap)
    except ValueError as error:
        raise UsageError(str(error), where=str(path), fix="add `speaker` to each row, or use --unit clip") from None
