"""Events of our own, for clients that ask for them by `?events=evoxtral`: all that the engine tells, in any dialect."""

from collections.abc import Mapping

from ...transcription.transcript import Word
from ..events import Heard, LiveEvent, StreamEnded, TagHeard, TextDelta, UtteranceEnded, UtteranceStarted, WordHeard


def as_message(event: LiveEvent, groups: Mapping[str, str]) -> dict:
    """`groups`: tag -> group; null for a tag that the table lacks."""
    match event:
        case UtteranceStarted():
            fields = {"type": "evoxtral.utterance.started", "utterance": event.utterance, "start_s": _rounded(event.start_s)}
        case WordHeard():
            fields = {"type": "evoxtral.word", "utterance": event.utterance, **_word(event.word)}
        case TagHeard(utterance, tag):
            fields = {"type": "evoxtral.tag", "utterance": utterance, **tag.as_json(), "group": groups.get(tag.tag)}
        case TextDelta():
            fields = {"type": "evoxtral.text", "utterance": event.utterance, "delta": event.text}
        case UtteranceEnded():
            segment = {
                "start_s": _rounded(event.segment.start_s), "end_s": _rounded(event.segment.end_s), "text": event.segment.text,
                "merged": event.merged, "words": [_word(word) for word in event.segment.words],
                "tags": [tag.as_json() | {"group": groups.get(tag.tag)} for tag in event.segment.tags],
            }  # fmt: skip
            fields = {
                "type": "evoxtral.utterance.ended", "utterance": event.utterance, "reason": event.reason, "segment": segment
            }  # fmt: skip
        case Heard():
            seconds = {"received_s": event.received_s, "decoded_s": event.decoded_s, "lag_s": event.lag_s}
            fields = {"type": "evoxtral.heard"} | {name: _rounded(value) for name, value in seconds.items()}
        case StreamEnded():
            fields = {
                "type": "evoxtral.ended", "transcript": event.transcript.as_json(), "tokens": event.tokens, "code": event.code
            }  # fmt: skip
    return fields


def _word(word: Word) -> dict:
    return {"word": word.word, "start_s": _rounded(word.start_s), "end_s": _rounded(word.end_s)}


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
