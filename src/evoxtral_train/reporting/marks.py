"""Reference and prediction side by side, with differences marked."""

from difflib import SequenceMatcher

from ..text.normalize import normalize_words
from ..text.tags import parse_leniently
from .page import Line


def marked(reference: str, prediction: str, with_words: bool) -> tuple[Line, Line]:
    """(reference with "missed" marks, prediction with "false" marks). Without words only tags are compared, and the reference's
    words stay unmarked.

    >>> marked("[sighs] no", "[laughs] [sighs]", with_words=False)[1].stretches
    [('[laughs]', 'false'), ('[sighs]', 'same')]
    """
    references, predictions = _pieces(reference), _pieces(prediction)
    compared = [place for place, (_, key) in enumerate(references) if with_words or key.startswith("[")]
    keys, predicted_keys = [references[place][1] for place in compared], [key for _, key in predictions]
    reference_marks, prediction_marks = ["same"] * len(references), ["same"] * len(predictions)
    for kind, begin, end, predicted_begin, predicted_end in SequenceMatcher(None, keys, predicted_keys, False).get_opcodes():
        if kind != "equal":
            for place in compared[begin:end]:
                reference_marks[place] = "missed"
            prediction_marks[predicted_begin:predicted_end] = ["false"] * (predicted_end - predicted_begin)
    return (
        Line("reference", [(shown, mark) for (shown, _), mark in zip(references, reference_marks, strict=True)]),
        Line("prediction", [(shown, mark) for (shown, _), mark in zip(predictions, prediction_marks, strict=True)]),
    )


def _pieces(text: str) -> list[tuple[str, str]]:
    """(text to show, key to compare by): tags, and words without case and punctuation."""
    pieces = []
    for piece in parse_leniently(text):
        if piece.kind == "tag":
            pieces.append((f"[{piece.value}]", f"[{piece.value}]"))
        else:
            pieces += [(word, normalize_words(word) or word) for word in piece.value.split()]
    return pieces
