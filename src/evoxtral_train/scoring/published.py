"""An exact reimplementation of the published metrics and reward. Nothing here follows this project's own conventions.

`card`    tag scores of the Evoxtral-Realtime model cards
`bench`   the seven measures of Evoxtral-Bench and the Evoxtral LoRA (3B) card
`reward`  the reward used for the Evoxtral-Realtime RL card

Functions score one clip; the published figures are means over clips. Source: the evaluation and RAFT code of the original
project (aytoast/ser: tag_metrics.py, train_modal.py, rl_modal.py), restated in docs/evaluation.md. `card` and `bench` differ
if nothing was written or the reference has no tag. Both count a written tag as hallucinated if its name is not among the
clip's reference tags, so `[sighs] [sighs]` against `[sighs]` has precision 1/2 and hallucination 0.
"""

import re
from collections import Counter
from collections.abc import Callable

_TAG = re.compile(r"\[([^\]]+)\]")
_CAPITALS = re.compile(r"\b[A-Z]{2,}\b")


def tags_of(text: str) -> list[str]:
    """Lower-cased, as written between brackets: "[Clears Throat] oh" -> ["clears throat"]."""
    return [name.lower() for name in _TAG.findall(text)]


def normal_words(text: str) -> str:
    """The text without tags, words in capitals lower-cased, punctuation and other case kept: "[sad] I said NO" -> "I said no"."""
    plain = " ".join(_TAG.sub(" ", text).split())
    return _CAPITALS.sub(lambda word: word[0].lower(), plain)


def card(reference: str, prediction: str) -> dict[str, float]:
    """precision (1 if nothing was written), recall (1 if the reference has no tag), f1 (1 if both are empty), hallucination."""
    references, written, matched = _counts(tags_of(reference), tags_of(prediction))
    return {
        "precision": matched / written if written else 1.0,
        "recall": matched / references if references else 1.0,
        "f1": _f1_of_sizes(references, written, matched),
        "hallucination": hallucination(reference, prediction),
    }


def bench(reference: str, prediction: str) -> dict[str, float]:
    """precision and recall (with an empty denominator: 1 if the other side is empty too, else 0), f1 (their harmonic mean),
    hallucination."""
    references, written, matched = _counts(tags_of(reference), tags_of(prediction))
    precision = matched / written if written else float(not references)
    recall = matched / references if references else float(not written)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "hallucination": hallucination(reference, prediction)}


def hallucination(reference: str, prediction: str) -> float:
    """The share of written tags whose name is not among the clip's reference tags; 0 if nothing was written."""
    names, written = set(tags_of(reference)), tags_of(prediction)
    return sum(tag not in names for tag in written) / len(written) if written else 0.0


def emphasis_f1(reference: str, prediction: str) -> float:
    """F1 of the words in capitals, compared as multisets on the text with its tags; 1 if both are empty, 0 if one is."""
    return _f1_of_sizes(*_counts(_capitals(reference), _capitals(prediction)))


def wer(reference: str, prediction: str) -> float | None:
    """jiwer's WER of `normal_words` both texts. None if the reference has no words; the mean leaves such clips out."""
    import jiwer

    return _error_rate(jiwer.wer, reference, prediction)


def cer(reference: str, prediction: str) -> float | None:
    """Like `wer`, by characters."""
    import jiwer

    return _error_rate(jiwer.cer, reference, prediction)


def word_accuracy(reference: str, prediction: str) -> float:
    """max(0, 1 − WER); 1 if the reference has no words."""
    rate = wer(reference, prediction)
    return 1.0 if rate is None else max(0.0, 1.0 - rate)


def reward(reference: str, prediction: str) -> float:
    """0.4 × word accuracy + 0.4 × card F1 + 0.2 × (1 − hallucination)."""
    scores = card(reference, prediction)
    return 0.4 * word_accuracy(reference, prediction) + 0.4 * scores["f1"] + 0.2 * (1 - scores["hallucination"])


def _capitals(text: str) -> list[str]:
    return [word.lower() for word in _CAPITALS.findall(text)]


def _counts(references: list[str], written: list[str]) -> tuple[int, int, int]:
    """(reference, written, matched), as multisets."""
    return len(references), len(written), (Counter(references) & Counter(written)).total()


def _f1_of_sizes(references: int, written: int, matched: int) -> float:
    return 2 * matched / (references + written) if references + written else 1.0


def _error_rate(measure: Callable[[str, str], float], reference: str, prediction: str) -> float | None:
    reference_words = normal_words(reference)
    return measure(reference_words, normal_words(prediction)) if reference_words else None
