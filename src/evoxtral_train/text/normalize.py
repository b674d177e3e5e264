"""Text normalisation for word and character error rates."""

import re

_APOSTROPHES = re.compile("[’‘`´]")
_NOT_WORD = re.compile(r"[^\w\s']+")


def normalize_words(text: str) -> str:
    """Lower case, punctuation dropped, apostrophes inside words kept, single spaces.

    "I'm — well — FINE!" -> "i'm well fine". Applied to reference and prediction alike.
    """
    text = _APOSTROPHES.sub("'", text.lower()).replace("_", " ")
    words = (word.strip("'") for word in _NOT_WORD.sub(" ", text).split())
    return " ".join(word for word in words if word)
