"""Why a tag is weak: is it in the sound, in the frozen audio path, in what the adapter writes?

Three listeners answer the same clips: a classifier on acoustic features (pitch, loudness, tempo …), the linear probe on the
base's frozen embeddings, and the adapter. Where a listener is worse than the one before it, on the same clips and beyond chance,
the tag is lost between the two.
"""

from collections.abc import Sequence

import numpy as np

from ..config.evaluation import Bootstrap
from ..records import Prediction
from ..text.tags import find_tags
from .intervals import Units, ratio
from .metrics import Sums, units_of
from .significance import PRIMARY_LEVEL, difference

ADAPTER, BASE, DATA, FINE, UNCLEAR = "adapter", "base", "data", "fine", "unclear"

ADVICE = {
    ADAPTER: "The frozen audio holds it, but the adapter does not write it. Train for more steps, or adapt the MLP as well as "
    "the attention (lora.target_modules; docs/raft-without-labels.md has the line).",
    BASE: "The sound holds it, but the frozen audio does not, so an adapter on the language model cannot learn it well. Train "
    "the audio path too (train.method full, train.train_audio_tower), or choose another base.",
    DATA: "Neither probe hears it. Listen to some of its clips: is it audible, and is it always labelled alike? Relabel it, "
    "merge it with a similar tag, or drop it.",
    UNCLEAR: "The intervals are too wide for a verdict. Measure more clips with this tag.",
    FINE: "The adapter writes it well.",
}


def diagnose(
    tag: str, acoustics: Sequence[Prediction], probe: Sequence[Prediction], adapter: Sequence[Prediction], bootstrap: Bootstrap,
    heard_f1: float,
) -> dict:  # fmt: skip
    """{clips, acoustics, probe, adapter: F1 as {value, low, high}, lost_by_base, lost_by_adapter: differences of F1, verdict}.
    The rows of the three are of the same clips, in the same order."""
    units = units_of(probe, bootstrap.unit)
    heard = {name: _sums(rows, tag) for name, rows in (("acoustics", acoustics), ("probe", probe), ("adapter", adapter))}

    def lost(after: str, before: str) -> dict:
        return difference(heard[after], heard[before], units, PRIMARY_LEVEL, bootstrap.permutations, bootstrap.seed)

    resampled = Units(units, bootstrap.samples, bootstrap.seed)
    found = {name: resampled.measure(ratio(*parts), parts.below > 0) for name, parts in heard.items()}
    found |= {"lost_by_base": lost("probe", "acoustics"), "lost_by_adapter": lost("adapter", "probe")}
    clips = sum(tag in find_tags(row.reference) for row in probe)
    return {"clips": clips, **found, "verdict": verdict(found, heard_f1)}


def f1_of(rows: Sequence[Prediction], tag: str, bootstrap: Bootstrap) -> dict:
    """One system's F1 of a tag: {value, low, high}."""
    parts = _sums(rows, tag)
    return Units(units_of(rows, bootstrap.unit), bootstrap.samples, bootstrap.seed).measure(ratio(*parts), parts.below > 0)


def verdict(found: dict, heard_f1: float) -> str:
    """The first that the intervals show: the adapter loses it, the base loses it, the adapter writes it well, nobody hears it.
    `heard_f1`: the F1 from which a tag counts as heard."""
    if _shown(found["lost_by_adapter"]):
        return ADAPTER
    if _shown(found["lost_by_base"]):
        return BASE
    if (found["adapter"]["low"] or 0.0) >= heard_f1:
        return FINE
    highs = [found[listener]["high"] for listener in ("acoustics", "probe")]
    if None not in highs and max(highs) < heard_f1:
        return DATA
    return UNCLEAR


def _shown(lost: dict) -> bool:
    return lost["shown"] and lost["value"] > 0


def _sums(rows: Sequence[Prediction], tag: str) -> Sums:
    counts = np.array([[find_tags(text).count(tag) for text in (row.reference, row.prediction)] for row in rows], float)
    return Sums(2 * counts.min(axis=1), counts.sum(axis=1))
