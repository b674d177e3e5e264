"""The full report on one system: metrics, confusion and calibration."""

from collections.abc import Sequence

from ..config.evaluation import Bootstrap
from ..config.sections import Placement
from ..records import Prediction
from ..text.taxonomy import Taxonomy
from .calibration import filter_curves, reliability
from .confusion import by_group, confusion, shares
from .metrics import evaluate


def summarize(
    rows: Sequence[Prediction], with_words: bool, taxonomy: Taxonomy, bootstrap: Bootstrap, placement: Placement
) -> dict:
    """`evaluate`, plus `confusion` (between tags, between groups, and as shares) and, if tags have confidences,
    `calibration` (reliability and filter curves)."""
    report = evaluate(rows, with_words, bootstrap, placement)
    table = confusion(rows)
    report["confusion"] = {"tags": table, "groups": by_group(table, taxonomy), "shares": shares(table, taxonomy)}
    if all(row.confidences is not None for row in rows) and report["predicted_tags"]:
        report["calibration"] = {"reliability": reliability(rows), "filters": filter_curves(rows)}
    return report
