"""The figures by which training judges a checkpoint: some of `metrics`, without intervals."""

from collections.abc import Mapping, Sequence

from ..records import Prediction
from .metrics import sums

FIGURES = {"loss": "loss", "wer": "WER", "wer_regression": "WER above the base's", "cer": "CER", "micro_f1": "tag F1",
           "false_tags_per_untagged_clip": "false tags per untagged clip"}  # fmt: skip
"""Name in logs and metrics: title."""
_WORDS, _TAGS = ("wer", "cer"), ("micro_f1", "false_tags_per_untagged_clip")


def figures_of(target: str) -> tuple[str, ...]:
    """The figures that a packed dataset's target has: "tags" has no words, "text" no tags."""
    return {"text": _WORDS, "tags": _TAGS}.get(target, _WORDS + _TAGS)


def figures(rows: Sequence[Prediction], target: str) -> dict[str, float]:
    """name -> value, as in `metrics.evaluate`. A rate without a denominator is left out."""
    totals = sums(rows, with_words="wer" in figures_of(target))
    return {name: float(totals[name].above.sum() / totals[name].below.sum())
            for name in figures_of(target) if totals[name].below.any()}  # fmt: skip


def shown(measured: Mapping[str, float]) -> str:
    """
    >>> shown({"loss": 0.1234, "wer": 0.045, "micro_f1": 0.714})
    'loss 0.123, WER 0.045, tag F1 0.714'
    """
    return ", ".join(f"{title} {measured[name]:.3f}" for name, title in FIGURES.items() if name in measured)
