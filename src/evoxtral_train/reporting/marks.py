"""Reference and prediction side by side, with what differs marked."""

from difflib import SequenceMatcher

from ..text.normalize import normalize_words
from ..text.tags import parse_leniently
from .page import Line


def marked(reference: str, prediction: str, with_words: bool) -> tuple[Line, Line]:
    """(the reference, what it has alone as "missed"; the prediction, what it has alone as "false"). Without words only the
    tags of the prediction are compared, and the reference's words stay unmarked.

    >>> marked("[sighs] no", "[laughs] [sighs]", with_words=False)[1].stretches
    [('[laughs]', 'false'), ('[sighs]', 'same')]
    """
    wanted, got = _pieces(reference), _pieces(prediction)
    compared = [place for place, (_, key) in enumerate(wanted) if with_words or key.startswith("[")]
    first, second = ["same"] * len(wanted), ["same"] * len(got)
    matcher = SequenceMatcher(None, [wanted[place][1] for place in compared], [key for _, key in got], autojunk=False)
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind != "equal":
            for place in compared[begin:end]:
                first[place] = "missed"
            second[other_begin:other_end] = ["false"] * (other_end - other_begin)
    return (
        Line("reference", [(shown, mark) for (shown, _), mark in zip(wanted, first, strict=True)]),
        Line("prediction", [(shown, mark) for (shown, _), mark in zip(got, second, strict=True)]),
    )


def _pieces(text: str) -> list[tuple[str, str]]:
    """(as it is shown, what it is compared by): tags, and words without their case and punctuation."""
    pieces = []
    for piece in parse_leniently(text):
        if piece.kind == "tag":
            pieces.append((f"[{piece.value}]", f"[{piece.value}]"))
        else:
            pieces += [(word, normalize_words(word) or word) for word in piece.value.split()]
    return pieces
