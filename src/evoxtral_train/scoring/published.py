"""The published metrics and reward, to the letter: nothing here follows this project's own conventions.

`card`    tag scores as on the Evoxtral-Realtime model cards
`bench`   the seven measures of Evoxtral-Bench and the Evoxtral LoRA (3B) card
`reward`  what the Evoxtral-Realtime RL card's candidates were scored by

A score is given for one clip; the published figures are means over clips. Source: the evaluation and RAFT code of the
original project (aytoast/ser: tag_metrics.py, train_modal.py, rl_modal.py), restated in docs/evaluation.md. The two
families differ where nothing was written or nothing was to be found; both count a written tag as hallucinated when its
name is not among the clip's reference tags, so `[sighs] [sighs]` against `[sighs]` has precision 1/2 and hallucination 0.
"""

import re
from collections import Counter
from collections.abc import Callable

_TAG = re.compile(r"\[([^\]]+)\]")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")


def tags_of(text: str) -> list[str]:
    """Lower-cased, as written between brackets: "[Clears Throat] oh" -> ["clears throat"]."""
    return [name.lower() for name in _TAG.findall(text)]


def words_of(text: str) -> str:
    """The text without tags, words in capitals lower-cased, punctuation and other case kept: "[sad] I said NO" -> "I said no"."""
    plain = " ".join(_TAG.sub(" ", text).split())
    return _CAPITALS.sub(lambda word: word[0].lower(), plain)


def card(reference: str, prediction: str) -> dict[str, float]:
    """precision (1 when nothing was written), recall (1 when there was nothing to find), f1 (both empty 1), hallucination."""
    wanted, written, matched = _counts(tags_of(reference), tags_of(prediction))
    return {
        "precision": matched / written if written else 1.0,
        "recall": matched / wanted if wanted else 1.0,
        "f1": _f1_of_sizes(wanted, written, matched),
        "hallucination": hallucination(reference, prediction),
    }


def bench(reference: str, prediction: str) -> dict[str, float]:
    """precision and recall (where their own side is empty: 1 if the other is too, else 0), f1 (their harmonic mean),
    hallucination."""
    wanted, written, matched = _counts(tags_of(reference), tags_of(prediction))
    precision = matched / written if written else float(not wanted)
    recall = matched / wanted if wanted else float(not written)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "hallucination": hallucination(reference, prediction)}


def hallucination(reference: str, prediction: str) -> float:
    """The share of written tags whose name is not among the clip's reference tags; 0 when nothing was written."""
    names, written = set(tags_of(reference)), tags_of(prediction)
    return sum(tag not in names for tag in written) / len(written) if written else 0.0


def emphasis_f1(reference: str, prediction: str) -> float:
    """F1 of the words in capitals, compared as multisets on the text with its tags; both empty 1, one empty 0."""
    return _f1_of_sizes(*_counts(_capitals(reference), _capitals(prediction)))


def wer(reference: str, prediction: str) -> float | None:
    """jiwer's WER of `words_of` both texts; None when the reference has no words: such clips are left out of the mean."""
    import jiwer

    return _error_rate(jiwer.wer, reference, prediction)


def cer(reference: str, prediction: str) -> float | None:
    """As `wer`, by characters."""
    import jiwer

    return _error_rate(jiwer.cer, reference, prediction)


def word_accuracy(reference: str, prediction: str) -> float:
    """max(0, 1 − WER); 1 when the reference has no words."""
    rate = wer(reference, prediction)
    return 1.0 if rate is None else max(0.0, 1.0 - rate)


def reward(reference: str, prediction: str) -> float:
    """0.4 × word accuracy + 0.4 × card F1 + 0.2 × (1 − hallucination)."""
    scores = card(reference, prediction)
    return 0.4 * word_accuracy(reference, prediction) + 0.4 * scores["f1"] + 0.2 * (1 - scores["hallucination"])


def _capitals(text: str) -> list[str]:
    return [word.lower() for word in _CAPITALS.findall(text)]


def _counts(wanted: list[str], written: list[str]) -> tuple[int, int, int]:
    """(reference, written, matched), as multisets."""
    return len(wanted), len(written), (Counter(wanted) & Counter(written)).total()


def _f1_of_sizes(wanted: int, written: int, matched: int) -> float:
    return 2 * matched / (wanted + written) if wanted + written else 1.0


def _error_rate(measure: Callable[[str, str], float], reference: str, prediction: str) -> float | None:
    said = words_of(reference)
    return measure(said, words_of(prediction)) if said else None
