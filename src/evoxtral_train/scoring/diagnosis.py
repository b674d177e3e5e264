"""Why a tag is weak: is it in the sound, in the frozen audio path, in what the adapter writes?

Three listeners answer the same clips: a classifier on acoustic features (pitch, loudness, tempo …), the linear probe on the
base's frozen embeddings, and the adapter. Where a listener is worse than the one before it, on the same clips and beyond chance,
the tag is lost between the two.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from ..config.evaluation import Bootstrap
from ..records import Prediction
from ..text.tags import find_tags
from .intervals import Units, ratio
from .metrics import Sums, units_of
from .significance import PRIMARY_LEVEL, difference

ADAPTER, BASE, DATA, FINE, RARE, UNCLEAR = "adapter", "base", "data", "fine", "rare", "unclear"

ADVICE = {
    ADAPTER: "The adapter writes it worse than a linear probe finds it in the frozen audio. Train for more steps, or adapt the "
    "MLP as well as the attention (lora.target_modules; docs/raft-without-labels.md has the line).",
    BASE: "Acoustic features show this tag better than a linear probe finds it in the frozen audio, and better than the adapter "
    "writes it. An adapter that also adapts the MLP may write it better; if it does not, train the audio path too (train.method "
    "full, train.train_audio_tower) or choose another base.",
    RARE: "Too few training clips have it, or too few lack it, to fit a classifier. Label more clips.",
    DATA: "Acoustic features, frozen audio and adapter all stay below heard_f1. Listen to some of its clips: is it audible, and "
    "is it always labelled alike? Relabel it, merge it with a similar tag, or drop it.",
    UNCLEAR: "The measurements are too uncertain for a verdict. Measure more clips with this tag.",
    FINE: "The adapter writes it well: its F1 is surely at least heard_f1.",
}


def diagnose(
    tag: str, listeners: Mapping[str, Sequence[Prediction]], bootstrap: Bootstrap, heard_f1: float, fitted: Collection[str]
) -> dict:
    """`listeners`: name -> its rows, of the same clips in the same order: the acoustic classifier, the probe, then adapters, of
    which the last is diagnosed. `heard_f1`: the F1 from which a tag counts as heard. `fitted`: the tags that the first two know.

    {clips, f1: listener -> {value, low, high}, lost: {base, adapter, both}, verdict}. What is lost are paired differences of F1:
    from the acoustic classifier to the probe, from the probe to the adapter, from the first to the last.
    """
    acoustics, probe, *_, adapter = listeners
    units = units_of(listeners[probe], bootstrap.unit)
    heard = {name: _sums(rows, tag) for name, rows in listeners.items()}

    def lost(before: str, after: str) -> dict:
        return difference(heard[after], heard[before], units, PRIMARY_LEVEL, bootstrap.permutations, bootstrap.seed)

    resampled = Units(units, bootstrap.samples, bootstrap.seed)
    f1 = {name: resampled.measure(ratio(*parts), parts.below > 0) for name, parts in heard.items()}
    losses = {BASE: lost(acoustics, probe), ADAPTER: lost(probe, adapter), "both": lost(acoustics, adapter)}
    shown = {name for name, loss in losses.items() if loss["shown"] and loss["value"] > 0}
    return {
        "clips": sum(tag in find_tags(row.reference) for row in listeners[probe]), "f1": f1, "lost": losses,
        "verdict": verdict(shown, f1[adapter], (f1[acoustics], f1[probe]), heard_f1, tag in fitted),
    }  # fmt: skip


def verdict(lost: Collection[str], adapter: dict, probes: Collection[dict], heard_f1: float, fitted: bool) -> str:
    """The first that applies: the adapter writes it well, no classifier was fitted, the adapter loses it, the base loses it,
    nobody hears it. A tag that the adapter writes as well as the acoustic classifier is not lost by the base, whatever a linear
    probe finds."""
    if (adapter["low"] or 0.0) >= heard_f1:
        return FINE
    if not fitted:
        return RARE
    if ADAPTER in lost:
        return ADAPTER
    if {BASE, "both"} <= set(lost):
        return BASE
    highs = [measure["high"] for measure in (*probes, adapter)]
    return DATA if None not in highs and max(highs) < heard_f1 else UNCLEAR


def _sums(rows: Sequence[Prediction], tag: str) -> Sums:
    counts = np.array([[find_tags(text).count(tag) for text in (row.reference, row.prediction)] for row in rows], float)
    return Sums(2 * counts.min(axis=1), counts.sum(axis=1))
