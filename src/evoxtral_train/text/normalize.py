"""Text normalisation for word and character error rates."""

import re
import unicodedata

_APOSTROPHES = re.compile("[’‘`´ʼ]")
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)]*$")


def normalize_words(text: str) -> str:
    """NFC, lower case, no punctuation except apostrophes inside words, single spaces.

    "I'm — well — FINE!" -> "i'm well fine". Letters, marks and digits of every script stay; joiners, soft hyphens and
    variation selectors are removed without leaving a space. Applied to reference and prediction alike.
    """
    text = unicodedata.normalize("NFC", _APOSTROPHES.sub("'", text).lower())
    words = (word.strip("'") for word in "".join(map(_kept, text)).split())
    return " ".join(word for word in words if word)


def ends_sentence(word: str) -> bool:
    """Whether a word ends with a sentence's last mark: "you.", "go?”"."""
    return bool(_SENTENCE_END.search(word))


def _kept(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf" or (kind == "Mn" and "VARIATION SELECTOR" in unicodedata.name(character, "")):
        return ""
    return character if kind[0] in "LMN" or character == "'" else " "
