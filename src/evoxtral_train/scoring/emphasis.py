"""Emphasis in a transcript: words in capitals, as ElevenLabs v3 reads and writes them ("I said NO")."""

from ..text.tags import strip_tags
from .tag_counts import TagCounts


def emphasised_words(text: str) -> list[str]:
    """Words of two or more letters, all capitals, returned in lower case: "[angry] I said NO, Tom!" -> ["no"]."""
    words = []
    for word in strip_tags(text).split():
        letters = "".join(letter for letter in word if letter.isalpha())
        if len(letters) >= 2 and letters.isupper():
            words.append(letters.lower())
    return words


def emphasis_counts(reference: str, prediction: str) -> TagCounts:
    """Emphasised words of both, compared as multisets like tags."""
    return TagCounts.of(emphasised_words(reference), emphasised_words(prediction))
