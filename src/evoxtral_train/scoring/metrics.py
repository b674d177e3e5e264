"""Families of metrics, always reported together, each with an interval over clips.

`card`   the published tag metrics of the Evoxtral-Realtime cards; a model that writes no tag scores the share of untagged clips
`bench`  the seven published measures of Evoxtral-Bench; word measures only if the system writes words
`micro`  over all tags of all clips: sums of matched, predicted and reference tags
`macro`  the mean over the tags that occur in the references, each tag scored over all clips
`placed` `micro` and `macro`, counting only tags in the right place (see `placement`), if places are known

`card` and `bench` are means over clips of `published`'s scores. In `micro`, a rate without a denominator (precision of a system
that wrote nothing) is None, not 0 or 1; in `macro` such a tag counts 0. Also reported: false tags per untagged clip, tags per
clip, a table per tag with its support, and WER, CER and emphasis if the system writes words. docs/evaluation.md has every
formula, its empty cases and a worked example.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..config.evaluation import Bootstrap
from ..config.sections import Placement
from ..records import Prediction
from ..text.tags import find_tags
from . import published
from .emphasis import emphasis_counts
from .intervals import LEVEL, Units, ratio
from .placement import pair, placed_counts, time_places, word_places
from .tag_counts import TagCounts
from .word_errors import count_character_errors, count_word_errors

_PLACEMENT, _BOOTSTRAP = Placement(), Bootstrap()


class Sums(NamedTuple):
    """A measure that is a ratio of sums: what each row adds to the numerator (`above`) and the denominator (`below`)."""

    above: np.ndarray
    below: np.ndarray


def evaluate(
    rows: Sequence[Prediction], with_words: bool, bootstrap: Bootstrap = _BOOTSTRAP, placement: Placement = _PLACEMENT
) -> dict:
    """Every metric as {value, low, high}, nested by family.

    `with_words`: whether the system writes words, so that WER, CER and emphasis are meaningful. Rows with the same id (pooled
    runs of a study) are resampled together. Raises ValueError if `bootstrap.unit` is unknown for a row.
    """
    if not rows:
        raise ValueError("no predictions to evaluate")
    counts = [TagCounts.of(find_tags(row.reference), find_tags(row.prediction)) for row in rows]
    tags = sorted({tag for clip in counts for tag in clip.reference | clip.predicted})
    units = Units(units_of(rows, bootstrap.unit), bootstrap.samples, bootstrap.seed)
    untagged = np.array([clip.reference.total() == 0 for clip in counts])
    predicted = np.array([clip.predicted.total() for clip in counts], float)
    report = {
        "clips": len(rows),
        "clips_without_reference_tags": int(untagged.sum()),
        "clips_without_predicted_tags": int((predicted == 0).sum()),
        "reference_tags": sum(clip.reference.total() for clip in counts),
        "predicted_tags": int(predicted.sum()),
        "card": _means([published.card(row.reference, row.prediction) for row in rows], units),
        "bench": _means([published.bench(row.reference, row.prediction) for row in rows], units),
        "micro": _micro(counts, units),
        "macro": _macro(counts, tags, units),
        "tags_per_clip": _ratio(predicted, np.ones(len(rows)), units, most=None),
        "false_tags_per_untagged_clip": _ratio(predicted * untagged, untagged.astype(float), units, most=None),
        "per_tag": {tag: _tag_row(counts, tag, units) for tag in tags},
        "intervals": {
            "unit": bootstrap.unit, "units": units.count, "level": LEVEL, "samples": bootstrap.samples, "seed": bootstrap.seed,
        },
    }  # fmt: skip
    if all(row.events is not None and row.written is not None for row in rows):
        report["placed"] = _placed_in_seconds(rows, tags, units, placement.tolerance_s)
    elif with_words:
        placed = [placed_counts(*word_places(row.reference, row.prediction), placement.tolerance_words) for row in rows]
        families = {"micro": _micro(placed, units), "macro": _macro(placed, tags, units)}
        report["placed"] = {"unit": "words", "tolerance": placement.tolerance_words, **families}
    if with_words:
        report["bench"] |= _bench_words(rows, units)
        report |= _words(rows, units)
    return report


def units_of(rows: Sequence[Prediction], unit: str) -> list[str]:
    """The resampling unit of each row: its clip or its speaker. Raises ValueError if a speaker is unknown."""
    if unit == "clip":
        return [row.id for row in rows]
    unknown = [row.id for row in rows if not row.speaker]
    if unknown:
        raise ValueError(f"{len(unknown)} of {len(rows)} clips have no speaker, the first is {unknown[0]!r}")
    return [row.speaker for row in rows]


def sums(rows: Sequence[Prediction], with_words: bool) -> dict[str, Sums]:
    """name -> each row's contribution, for the measures that two systems are compared by."""
    counts = [TagCounts.of(find_tags(row.reference), find_tags(row.prediction)) for row in rows]
    matched, predicted, reference = _totals(counts)
    untagged = (reference == 0).astype(float)
    measures = {
        "micro_f1": Sums(2 * matched, predicted + reference),
        "micro_recall": Sums(matched, reference),
        "hallucination": Sums(predicted - matched, predicted),
        "false_tags_per_untagged_clip": Sums(predicted * untagged, untagged),
        "tags_per_clip": Sums(predicted, np.ones(len(rows))),
    }
    if with_words:
        measures |= {"wer": _error_sums(rows, count_word_errors), "cer": _error_sums(rows, count_character_errors)}
    return measures


def _totals(counts: list[TagCounts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(matched, predicted, reference tags), each [clips]."""
    kinds = ("matched", "predicted", "reference")
    return tuple(np.array([getattr(clip, kind).total() for clip in counts], float) for kind in kinds)


def _means(scores: list[dict[str, float]], units: Units) -> dict:
    """The mean over clips of each score."""
    return {name: _mean([clip[name] for clip in scores], units) for name in scores[0]}


def _bench_words(rows: Sequence[Prediction], units: Units) -> dict:
    """As published, WER and CER leave out clips whose reference has no words; `clips_without_words` counts them."""
    texts = [(row.reference, row.prediction) for row in rows]
    measures = {name: [getattr(published, name)(*pair) for pair in texts] for name in ("emphasis_f1", "wer", "cer")}
    return {name: _mean(values, units) for name, values in measures.items()}


def _placed_in_seconds(rows: Sequence[Prediction], tags: list[str], units: Units, tolerance_s: float) -> dict:
    """`latency_s`: the time at which a tag was complete minus its event's end, over the tags in the right place."""
    counts, latencies = [], []
    for row in rows:
        places, written = time_places(row.events, row.written)
        counts.append(placed_counts(places, written, tolerance_s))
        pairs = pair(places, written, tolerance_s)
        latencies += [row.written[index]["written_s"] - places[place].end for place, index in pairs]
    latency = {"tags": len(latencies), "median": None, "p90": None}
    if latencies:
        latency |= {"median": float(np.median(latencies)), "p90": float(np.percentile(latencies, 90))}
    families = {"micro": _micro(counts, units), "macro": _macro(counts, tags, units)}
    return {"unit": "s", "tolerance": tolerance_s, **families, "latency_s": latency}


def _words(rows: Sequence[Prediction], units: Units) -> dict:
    word_errors, character_errors = _error_sums(rows, count_word_errors), _error_sums(rows, count_character_errors)
    emphasis = [emphasis_counts(row.reference, row.prediction) for row in rows]
    return {
        "wer": {"micro": _ratio(*word_errors, units)},
        "cer": {"micro": _ratio(*character_errors, units)},
        "clips_without_words": int((word_errors.below == 0).sum()),
        "emphasis": {
            "reference_words": sum(clip.reference.total() for clip in emphasis),
            "predicted_words": sum(clip.predicted.total() for clip in emphasis),
            "micro": {"f1": _micro(emphasis, units)["f1"]},
        },
    }


def _error_sums(rows: Sequence[Prediction], count: Callable) -> Sums:
    errors = [count(row.reference, row.prediction) for row in rows]
    return Sums(np.array([clip.errors for clip in errors], float), np.array([clip.length for clip in errors], float))


def _micro(counts: list[TagCounts], units: Units) -> dict:
    matched, predicted, reference = _totals(counts)
    return {
        "precision": _ratio(matched, predicted, units),
        "recall": _ratio(matched, reference, units),
        "f1": _ratio(2 * matched, predicted + reference, units),
        "hallucination": _ratio(predicted - matched, predicted, units),
    }


def _macro(counts: list[TagCounts], tags: list[str], units: Units) -> dict:
    """In each bootstrap sample the mean runs over the tags that occur in that sample."""
    matched, predicted, reference = (
        np.array([[getattr(clip, name)[tag] for tag in tags] for clip in counts], float).reshape(len(counts), len(tags))
        for name in ("matched", "predicted", "reference")
    )

    def mean_over_tags(numerators: np.ndarray, denominators: np.ndarray):
        def measure(weights: np.ndarray) -> np.ndarray:
            present = weights @ reference > 0
            share = _divide(weights @ numerators, weights @ denominators)
            tags_present = present.sum(axis=-1)
            means = np.full(len(weights), np.nan)
            return np.divide((share * present).sum(axis=-1), tags_present, out=means, where=tags_present > 0)

        return measure

    shares = {
        "precision": (matched, predicted),
        "recall": (matched, reference),
        "f1": (2 * matched, predicted + reference),
        "hallucination": (predicted - matched, predicted),
    }
    return {name: units.measure(mean_over_tags(*share), reference.any(axis=1)) for name, share in shares.items()}


def _tag_row(counts: list[TagCounts], tag: str, units: Units) -> dict:
    matched, predicted, support = (
        np.array([getattr(clip, name)[tag] for clip in counts], float) for name in ("matched", "predicted", "reference")
    )
    f1 = _ratio(2 * matched, predicted + support, units)
    return {
        "support": int(support.sum()),
        "predicted": int(predicted.sum()),
        "matched": int(matched.sum()),
        "precision": float(matched.sum() / predicted.sum()) if predicted.sum() else None,
        "recall": float(matched.sum() / support.sum()) if support.sum() else None,
        "f1": f1["value"],
        "f1_low": f1["low"],
        "f1_high": f1["high"],
    }


def _mean(values: Sequence[float | None], units: Units) -> dict:
    """The mean over the clips that have a value."""
    known = np.array([value is not None for value in values], float)
    return _ratio(np.array([value or 0.0 for value in values]), known, units)


def _ratio(above: np.ndarray, below: np.ndarray, units: Units, most: float | None = 1.0) -> dict:
    """The ratio of the sums; None if the denominator is 0. Resamples with a denominator of 0 are ignored."""
    return units.measure(ratio(above, below), below > 0, most)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=float), where=below > 0)
