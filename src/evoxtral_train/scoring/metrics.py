"""Metrics over clips in three families, always side by side, each with a bootstrap interval.

`card`   the published convention: the mean over clips of a clip's score, an empty clip scores 1.
         A model that writes no tag scores F1 = recall = the share of untagged clips, precision 1.
`micro`  over all tags of all clips: sums of matched, predicted and reference tags.
`macro`  the mean over the tags that occur in the references, each tag scored over all clips.

A rate without a denominator (precision of a system that wrote nothing) is None, not 0 or 1, in
`micro`; in `macro` such a tag counts 0. `placed` holds the same three families for tags that also
stand in their place (see `placement`), wherever places are known. Beside them: false tags per
untagged clip, tags per clip, WER, CER and emphasis where the system writes words, and a table per tag
with its support. docs/evaluation.md has every formula, its empty cases and a worked example.
"""

from collections.abc import Sequence

import numpy as np

from ..config.schema import Placement
from ..records import Prediction
from ..text.tags import find_tags
from . import tag_counts
from .bootstrap import LEVEL, Clips, ratio
from .emphasis import emphasis_counts
from .placement import pair, placed_counts, time_places, word_places
from .tag_counts import TagCounts
from .word_errors import count_character_errors, count_word_errors

_PLACEMENT = Placement()
_CARD = {
    "precision": tag_counts.precision,
    "recall": tag_counts.recall,
    "f1": tag_counts.f1,
    "hallucination": tag_counts.hallucination,
}


def evaluate(
    rows: Sequence[Prediction], with_words: bool, samples: int = 2000, seed: int = 0, placement: Placement = _PLACEMENT
) -> dict:
    """Every metric as {value, low, high}, nested by family.

    `with_words`: whether the system writes words, so that WER, CER and emphasis mean something. `samples`
    and `seed` of the bootstrap; clips are the unit that is drawn, and rows of one id (several runs of
    a study, pooled) are drawn together.
    """
    if not rows:
        raise ValueError("no predictions to evaluate")
    counts = [TagCounts.of(find_tags(row.reference), find_tags(row.prediction)) for row in rows]
    tags = sorted({tag for each in counts for tag in each.reference | each.predicted})
    clips = Clips([row.id for row in rows], samples, seed)
    untagged = np.array([each.reference.total() == 0 for each in counts])
    predicted = np.array([each.predicted.total() for each in counts], float)
    report = {
        "clips": len(rows),
        "clips_without_reference_tags": int(untagged.sum()),
        "clips_without_predicted_tags": int((predicted == 0).sum()),
        "reference_tags": sum(each.reference.total() for each in counts),
        "predicted_tags": int(predicted.sum()),
        **_families(counts, tags, clips),
        "tags_per_clip": _mean(predicted, clips),
        "false_tags_per_untagged_clip": _ratio(predicted * untagged, untagged.astype(float), clips),
        "per_tag": {tag: _tag_row(counts, tag, clips) for tag in tags},
        "bootstrap": {"samples": samples, "seed": seed, "level": LEVEL, "kind": "BCa"},
    }
    if all(row.events is not None and row.written is not None for row in rows):
        report["placed"] = _placed_in_seconds(rows, tags, clips, placement.tolerance_s)
    elif with_words:
        placed = [placed_counts(*word_places(row.reference, row.prediction), placement.tolerance_words) for row in rows]
        report["placed"] = {"unit": "words", "tolerance": placement.tolerance_words, **_families(placed, tags, clips)}
    if with_words:
        report |= _words(rows, clips)
    return report


def differences(before: Sequence[Prediction], after: Sequence[Prediction], samples: int = 2000, seed: int = 0) -> dict[str, dict]:
    """What `after` has more than `before`, as {value, low, high}: micro F1 and hallucination, false tags per untagged
    clip, tags per clip. Each clip is drawn for both at once, so that what makes it hard for both does not
    widen the interval. Raises ValueError unless both hold the same clips in the same order."""
    ids = [row.id for row in before]
    if ids != [row.id for row in after]:
        raise ValueError("the two systems do not hold the same clips in the same order")
    clips = Clips(ids, samples, seed)
    first, second = sums(before), sums(after)
    found = {}
    for name in first:
        one, other = ratio(*first[name]), ratio(*second[name])
        counted = (first[name][1] > 0) | (second[name][1] > 0)
        found[name] = clips.measure(lambda weights, one=one, other=other: other(weights) - one(weights), counted)
    return found


def sums(rows: Sequence[Prediction]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> numerators and denominators, one of each per row: what two systems are compared by."""
    counts = [TagCounts.of(find_tags(row.reference), find_tags(row.prediction)) for row in rows]
    matched, predicted, wanted = (
        np.array([getattr(each, name).total() for each in counts], float) for name in ("matched", "predicted", "reference")
    )
    untagged = (wanted == 0).astype(float)
    return {
        "micro_f1": (2 * matched, predicted + wanted),
        "hallucination": (predicted - matched, predicted),
        "false_tags_per_untagged_clip": (predicted * untagged, untagged),
        "tags_per_clip": (predicted, np.ones(len(rows))),
    }


def _families(counts: list[TagCounts], tags: list[str], clips: Clips) -> dict:
    return {
        "card": {name: _mean(np.array([score(each) for each in counts]), clips) for name, score in _CARD.items()},
        "micro": _micro(counts, clips),
        "macro": _macro(counts, tags, clips),
    }


def _placed_in_seconds(rows: Sequence[Prediction], tags: list[str], clips: Clips, tolerance_s: float) -> dict:
    """`latency_s`: the moment at which a tag was complete minus its event's end, over the tags in their place."""
    counts, latencies = [], []
    for row in rows:
        places, written = time_places(row.events, row.written)
        counts.append(placed_counts(places, written, tolerance_s))
        pairs = pair(places, written, tolerance_s)
        latencies += [row.written[index]["written_s"] - places[place].end for place, index in pairs]
    latency = {"tags": len(latencies), "median": None, "p90": None}
    if latencies:
        latency |= {"median": float(np.median(latencies)), "p90": float(np.percentile(latencies, 90))}
    return {"unit": "s", "tolerance": tolerance_s, **_families(counts, tags, clips), "latency_s": latency}


def _words(rows: Sequence[Prediction], clips: Clips) -> dict:
    report = {}
    for name, count in (("wer", count_word_errors), ("cer", count_character_errors)):
        errors = [count(row.reference, row.prediction) for row in rows]
        report[name] = {
            "card": _mean(np.array([each.rate for each in errors]), clips),
            "micro": _ratio(np.array([each.errors for each in errors]), np.array([each.length for each in errors]), clips),
        }
        report[f"clips_without_{'words' if name == 'wer' else 'characters'}"] = sum(each.length == 0 for each in errors)
    emphasis = [emphasis_counts(row.reference, row.prediction) for row in rows]
    report["emphasis"] = {
        "reference_words": sum(each.reference.total() for each in emphasis),
        "predicted_words": sum(each.predicted.total() for each in emphasis),
        "card": {"f1": _mean(np.array([tag_counts.f1(each) for each in emphasis]), clips)},
        "micro": {"f1": _micro(emphasis, clips)["f1"]},
    }
    return report


def _micro(counts: list[TagCounts], clips: Clips) -> dict:
    matched, predicted, wanted = (
        np.array([getattr(each, name).total() for each in counts], float) for name in ("matched", "predicted", "reference")
    )
    return {
        "precision": _ratio(matched, predicted, clips),
        "recall": _ratio(matched, wanted, clips),
        "f1": _ratio(2 * matched, predicted + wanted, clips),
        "hallucination": _ratio(predicted - matched, predicted, clips),
    }


def _macro(counts: list[TagCounts], tags: list[str], clips: Clips) -> dict:
    """The tags that a bootstrap sample holds are those that its mean runs over."""
    matched, predicted, wanted = (
        np.array([[getattr(each, name)[tag] for tag in tags] for each in counts], float).reshape(len(counts), len(tags))
        for name in ("matched", "predicted", "reference")
    )

    def mean_over_tags(numerators: np.ndarray, denominators: np.ndarray):
        def measure(weights: np.ndarray) -> np.ndarray:
            present = weights @ wanted > 0
            share = _divide(weights @ numerators, weights @ denominators)
            tags_present = present.sum(axis=-1)
            means = np.full(len(weights), np.nan)
            return np.divide((share * present).sum(axis=-1), tags_present, out=means, where=tags_present > 0)

        return measure

    shares = {
        "precision": (matched, predicted),
        "recall": (matched, wanted),
        "f1": (2 * matched, predicted + wanted),
        "hallucination": (predicted - matched, predicted),
    }
    return {name: clips.measure(mean_over_tags(*share)) for name, share in shares.items()}


def _tag_row(counts: list[TagCounts], tag: str, clips: Clips) -> dict:
    matched, predicted, support = (
        np.array([getattr(each, name)[tag] for each in counts], float) for name in ("matched", "predicted", "reference")
    )
    f1 = _ratio(2 * matched, predicted + support, clips)
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


def _mean(values: np.ndarray, clips: Clips) -> dict:
    return clips.measure(ratio(values, np.ones(len(values))))


def _ratio(numerators: np.ndarray, denominators: np.ndarray, clips: Clips) -> dict:
    """Sum over sum; None when the denominator is empty. Resamples that lack one are left out of the interval."""
    return clips.measure(ratio(numerators, denominators), denominators > 0)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator > 0)
