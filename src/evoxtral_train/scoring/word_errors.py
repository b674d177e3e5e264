"""Word and character error rates with jiwer, over all clips.

jiwer refuses an empty reference; here such a clip counts, with each word of its hypothesis as an
insertion. Texts are stripped of tags and normalised by `text.normalize` first.
"""

from dataclasses import dataclass

from ..text.normalize import normalize_words
from ..text.tags import strip_tags


@dataclass(frozen=True)
class ErrorCount:
    """`errors`: substitutions + deletions + insertions; `length`: words or characters of the reference."""

    errors: int
    length: int

    @property
    def rate(self) -> float:
        """errors / length; with an empty reference 0 for an empty hypothesis, else 1."""
        if self.length:
            return self.errors / self.length
        return 1.0 if self.errors else 0.0


def count_word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Of two tagged texts: "[sighs] I told you" against "i sold you" -> 1 error in 3 words."""
    return _count(reference, hypothesis, characters=False)


def count_character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """The same for characters, counting the spaces between words."""
    return _count(reference, hypothesis, characters=True)


def _count(reference: str, hypothesis: str, characters: bool) -> ErrorCount:
    import jiwer

    reference, hypothesis = normalize_words(strip_tags(reference)), normalize_words(strip_tags(hypothesis))
    if not reference:
        return ErrorCount(len(hypothesis) if characters else len(hypothesis.split()), 0)
    process = jiwer.process_characters if characters else jiwer.process_words
    measured = process(reference, hypothesis)
    errors = measured.substitutions + measured.deletions + measured.insertions
    return ErrorCount(errors, measured.hits + measured.substitutions + measured.deletions)
