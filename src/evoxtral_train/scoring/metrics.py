"""Metrics over clips in three families, always side by side, each with a bootstrap interval.

`card`   the published convention: the mean over clips of a clip's score, an empty clip scores 1.
         A model that writes no tag scores F1 = recall = the share of untagged clips, precision 1.
`micro`  over all tags of all clips: sums of matched, predicted and reference tags.
`macro`  the mean over the tags that occur in the references, each tag scored over all clips.

A rate without a denominator (precision of a system that wrote nothing) is None, not 0 or 1, in
`micro`; in `macro` such a tag counts 0. `placed` holds the same three families for tags that also
stand in their place (see `placement`), wherever places are known. Beside them: false tags per
untagged clip, tags per clip, WER and CER where the system writes words, and a table per tag with
its support.
"""

from collections.abc import Sequence

import numpy as np

from ..config.schema import Placement
from ..records import Prediction
from ..text.tags import find_tags
from . import tag_counts
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

    `with_words`: whether the system writes words, so that WER and CER mean something. `samples`
    and `seed` of the bootstrap; clips are the unit that is drawn, and rows of one id (several runs of
    a study, pooled) are drawn together.
    """
    if not rows:
        raise ValueError("no predictions to evaluate")
    counts = [TagCounts.of(find_tags(row.reference), find_tags(row.prediction)) for row in rows]
    tags = sorted({tag for each in counts for tag in each.reference | each.predicted})
    weights = _bootstrap_weights([row.id for row in rows], samples, seed)
    untagged = np.array([each.reference.total() == 0 for each in counts])
    report = {
        "clips": len(rows),
        "clips_without_reference_tags": int(untagged.sum()),
        "clips_without_predicted_tags": sum(each.predicted.total() == 0 for each in counts),
        "reference_tags": sum(each.reference.total() for each in counts),
        "predicted_tags": sum(each.predicted.total() for each in counts),
        **_families(counts, tags, weights),
        "tags_per_clip": _mean([each.predicted.total() for each in counts], weights),
        "false_tags_per_untagged_clip": _ratio(
            np.array([each.predicted.total() for each in counts]) * untagged, untagged.astype(float), weights
        ),
        "per_tag": {tag: _tag_row(counts, tag) for tag in tags},
        "bootstrap": {"samples": samples, "seed": seed, "level": 0.95},
    }
    if all(row.events is not None and row.written is not None for row in rows):
        report["placed"] = _placed_in_seconds(rows, tags, weights, placement.tolerance_s)
    elif with_words:
        placed = [placed_counts(*word_places(row.reference, row.prediction), placement.tolerance_words) for row in rows]
        report["placed"] = {"unit": "words", "tolerance": placement.tolerance_words, **_families(placed, tags, weights)}
    if with_words:
        report |= _words(rows, weights)
    return report


def differences(before: Sequence[Prediction], after: Sequence[Prediction], samples: int = 2000, seed: int = 0) -> dict[str, dict]:
    """What `after` has more than `before`, as {value, low, high}: micro F1 and hallucination, false tags per untagged
    clip, tags per clip. Each clip is drawn for both at once, so that what makes it hard for both does not
    widen the interval. Raises ValueError unless both hold the same clips in the same order."""
    ids = [row.id for row in before]
    if ids != [row.id for row in after]:
        raise ValueError("the two systems do not hold the same clips in the same order")
    weights = _bootstrap_weights(ids, samples, seed)
    first, second = _sums(before), _sums(after)
    found = {}
    for name in first:
        (point, drawn), (later_point, later_drawn) = (_ratios(*sums[name], weights) for sums in (first, second))
        both = ~np.isnan(drawn) & ~np.isnan(later_drawn)
        undefined = np.isnan(point) or np.isnan(later_point)
        found[name] = _with_interval(None if undefined else float(later_point - point), (later_drawn - drawn)[both])
    return found


def _sums(rows: Sequence[Prediction]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> numerators and denominators, one of each per row."""
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


def _ratios(numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """(sum over sum, the same in each resample); NaN without a denominator."""
    every = np.vstack([np.ones(len(numerators)), weights])
    above, below = every @ numerators, every @ denominators
    ratios = np.divide(above, below, out=np.full(len(every), np.nan), where=below > 0)
    return ratios[0], ratios[1:]


def _families(counts: list[TagCounts], tags: list[str], weights: np.ndarray) -> dict:
    return {
        "card": {name: _mean([score(each) for each in counts], weights) for name, score in _CARD.items()},
        "micro": _micro(counts, weights),
        "macro": _macro(counts, tags, weights),
    }


def _placed_in_seconds(rows: Sequence[Prediction], tags: list[str], weights: np.ndarray, tolerance_s: float) -> dict:
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
    return {"unit": "s", "tolerance": tolerance_s, **_families(counts, tags, weights), "latency_s": latency}


def _words(rows: Sequence[Prediction], weights: np.ndarray) -> dict:
    report = {}
    for name, count in (("wer", count_word_errors), ("cer", count_character_errors)):
        errors = [count(row.reference, row.prediction) for row in rows]
        report[name] = {
            "card": _mean([each.rate for each in errors], weights),
            "micro": _ratio(np.array([each.errors for each in errors]), np.array([each.length for each in errors]), weights),
        }
        report[f"clips_without_{'words' if name == 'wer' else 'characters'}"] = sum(each.length == 0 for each in errors)
    return report


def _micro(counts: list[TagCounts], weights: np.ndarray) -> dict:
    matched = np.array([each.matched.total() for each in counts])
    predicted = np.array([each.predicted.total() for each in counts])
    wanted = np.array([each.reference.total() for each in counts])
    return {
        "precision": _ratio(matched, predicted, weights),
        "recall": _ratio(matched, wanted, weights),
        "f1": _ratio(2 * matched, predicted + wanted, weights),
        "hallucination": _ratio(predicted - matched, predicted, weights),
    }


def _macro(counts: list[TagCounts], tags: list[str], weights: np.ndarray) -> dict:
    """The tags that a bootstrap sample holds are those that its mean runs over."""
    matched, predicted, wanted = (
        np.array([[getattr(each, name)[tag] for tag in tags] for each in counts], float).reshape(len(counts), len(tags))
        for name in ("matched", "predicted", "reference")
    )

    def means(weight: np.ndarray) -> dict[str, np.ndarray]:
        hits, said, support = weight @ matched, weight @ predicted, weight @ wanted
        present = support > 0
        shares = {"precision": _divide(hits, said), "recall": _divide(hits, support), "f1": _divide(2 * hits, said + support)}
        shares["hallucination"] = _divide(said - hits, said)
        return {name: _divide((share * present).sum(axis=-1), present.sum(axis=-1)) for name, share in shares.items()}

    point, spread = means(np.ones((1, len(counts)))), means(weights)
    defined = bool(wanted.sum())
    return {name: _with_interval(float(point[name][0]) if defined else None, spread[name]) for name in point}


def _tag_row(counts: list[TagCounts], tag: str) -> dict:
    matched, predicted, support = (
        sum(getattr(each, name)[tag] for each in counts) for name in ("matched", "predicted", "reference")
    )
    return {
        "support": support,
        "predicted": predicted,
        "matched": matched,
        "precision": matched / predicted if predicted else None,
        "recall": matched / support if support else None,
        "f1": 2 * matched / (predicted + support),
    }


def _bootstrap_weights(ids: Sequence[str], samples: int, seed: int) -> np.ndarray:
    """[samples, rows]: how often each row's clip is drawn in each resample of as many clips."""
    clips = {identity: number for number, identity in enumerate(dict.fromkeys(ids))}
    drawn = np.random.default_rng(seed).multinomial(len(clips), np.full(len(clips), 1 / len(clips)), size=samples)
    return drawn[:, [clips[identity] for identity in ids]].astype(float)


def _mean(values: Sequence[float], weights: np.ndarray) -> dict:
    array = np.asarray(values, float)
    return _with_interval(float(array.mean()), weights @ array / weights.sum(axis=1))


def _ratio(numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray) -> dict:
    """Sum over sum; None when the denominator is empty. Resamples that lack one are left out of the interval."""
    point, drawn = _ratios(numerators, denominators, weights)
    return _with_interval(None if np.isnan(point) else float(point), drawn[~np.isnan(drawn)])


def _with_interval(value: float | None, drawn: np.ndarray) -> dict:
    if value is None or len(drawn) == 0:
        return {"value": value, "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator, dtype=float), where=denominator > 0)
