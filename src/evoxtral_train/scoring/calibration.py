"""Calibration: how often tags of a given confidence are right, and precision and recall of filters by confidence."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..records import Prediction
from ..text.tags import find_tags, keep_tags
from .tag_filter import TagFilter

BINS = 10
_CURVE_POINTS = 60


def filtered(row: Prediction, tag_filter: TagFilter) -> Prediction:
    """The prediction with only the tags that the filter keeps; `written` and `confidences` are filtered alike. Raises ValueError
    if needed confidences are missing."""
    tags = find_tags(row.prediction)
    kept = tag_filter.kept(tags, row.confidences)
    if len(kept) == len(tags):
        return row

    def of(values: list | None) -> list | None:
        return None if values is None else [values[place] for place in kept if place < len(values)]

    text = keep_tags(row.prediction, set(kept))
    return replace(row, prediction=text, written=of(row.written), confidences=of(row.confidences))


def judged_tags(rows: Sequence[Prediction]) -> list[tuple[float, bool]]:
    """(confidence, right) of every predicted tag. Of a tag written more often than in the reference, the first ones are right."""
    judged = []
    for row in rows:
        left = Counter(find_tags(row.reference))
        for tag, confidence in zip(find_tags(row.prediction), row.confidences or [], strict=True):
            judged.append((confidence, left[tag] > 0))
            left[tag] -= 1
    return judged


def reliability(rows: Sequence[Prediction]) -> dict:
    """`reliability_of` the predicted tags."""
    return reliability_of(judged_tags(rows))


def reliability_of(judged: Sequence[tuple[float, bool]]) -> dict:
    """Of (confidence, right) pairs. `bins`: {from, to, tags, confidence (mean), right (share)} for each bin with tags.
    `expected_error`: the mean distance between the two over all tags (expected calibration error, Naeini et al. 2015), None
    without tags."""
    bins, error = [], 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [tag for tag in judged if low <= tag[0] < high or (number == BINS - 1 and tag[0] == 1.0)]
        if inside:
            mean, right = (sum(tag[column] for tag in inside) / len(inside) for column in (0, 1))
            bins.append({"from": low, "to": high, "tags": len(inside), "confidence": mean, "right": right})
            error += abs(mean - right) * len(inside)
    return {"tags": len(judged), "bins": bins, "expected_error": error / len(judged) if judged else None}


def filter_curves(rows: Sequence[Prediction]) -> dict[str, list[dict]]:
    """filter name -> [{setting, precision, recall, f1}], micro, from the loosest setting to the strictest."""
    most = max((len(find_tags(row.prediction)) for row in rows), default=0)
    confidences = sorted({value for row in rows for value in row.confidences or []})
    step = max(1, len(confidences) // _CURVE_POINTS)
    curves = {
        "least confidence": [(value, TagFilter(min_confidence=value)) for value in confidences[::step]],
        "top-k by confidence": [(k, TagFilter(top_k=k, top_k_by="confidence")) for k in range(most, 0, -1)],
        "top-k by order": [(k, TagFilter(top_k=k)) for k in range(most, 0, -1)],
    }
    return {
        name: [_micro([filtered(row, tag_filter) for row in rows], setting) for setting, tag_filter in settings]
        for name, settings in curves.items()
    }


def _micro(rows: Sequence[Prediction], setting: float) -> dict:
    matched = predicted = references = 0
    for row in rows:
        reference, prediction = Counter(find_tags(row.reference)), Counter(find_tags(row.prediction))
        matched += (reference & prediction).total()
        predicted, references = predicted + prediction.total(), references + reference.total()
    return {
        "setting": setting,
        "precision": matched / predicted if predicted else None,
        "recall": matched / references if references else None,
        "f1": 2 * matched / (predicted + references) if predicted + references else None,
    }
