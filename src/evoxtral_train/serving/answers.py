"""A transcript as the answers that clients expect: OpenAI's, Mistral's, and our own.

`text` is the base's, so that clients which know nothing of tags get clean words. Tags are in further fields, which both SDKs
keep: `tags` (as in docs/transcription.md), and `merged`, the text with the tags in it.
"""

import math
import zlib

from ..transcription.transcript import Transcript


def our_json(transcript: Transcript, name: str, model: str) -> dict:
    """What `evoxtral transcribe` writes; `name`: the file's, as the client calls it."""
    return transcript.as_json() | {"file": name, "model": model}


def openai_json(transcript: Transcript) -> dict:
    content = transcript.as_json()
    usage = {"type": "duration", "seconds": content["duration_s"]}
    return {"text": content["text"], "usage": usage, "tags": content["tags"], "merged": content["merged"]}


def openai_verbose_json(transcript: Transcript, granularities: list[str], language: str | None) -> dict:
    """OpenAI's clients demand every field. What the model does not tell has a value that says nothing: `tokens` [], `avg_logprob`
    and `no_speech_prob` 0, `language` as sent or "unknown"."""
    content = transcript.as_json()
    answer = {"task": "transcribe", "language": language or "unknown", "duration": content["duration_s"]}
    answer |= openai_json(transcript)
    if "word" in granularities:
        answer["words"] = [
            {"word": word["word"], "start": word["start_s"], "end": word["end_s"]} for word in content["words"]
        ]
    if "segment" in granularities:
        answer["segments"] = [
            {
                "id": index, "seek": round(100 * segment["start_s"]), "start": segment["start_s"], "end": segment["end_s"],
                "text": segment["text"], "tokens": [], "temperature": 0.0, "avg_logprob": 0.0,
                "compression_ratio": _compression(segment["text"]), "no_speech_prob": 0.0,
                "tags": segment["tags"], "merged": segment["merged"],
            }
            for index, segment in enumerate(content["segments"])
        ]  # fmt: skip
    return answer


def openai_delta(text: str) -> dict:
    return {"type": "transcript.text.delta", "delta": text}


def openai_done(transcript: Transcript) -> dict:
    return {"type": "transcript.text.done"} | openai_json(transcript)


def mistral_json(transcript: Transcript, granularities: list[str], language: str | None, model: str) -> dict:
    """`segments` are words if only their times are wanted, as in Mistral's own answers."""
    content = transcript.as_json()
    if granularities == ["word"]:
        parts = [{"text": word["word"], "start": word["start_s"], "end": word["end_s"]} for word in content["words"]]
    else:
        parts = [
            {
                "text": segment["text"], "start": segment["start_s"], "end": segment["end_s"],
                "tags": segment["tags"], "merged": segment["merged"],
            }
            for segment in content["segments"]
        ]  # fmt: skip
    return {
        "model": model, "text": content["text"], "language": language,
        "segments": [{"type": "transcription_segment"} | part for part in parts],
        "usage": {"prompt_audio_seconds": math.ceil(content["duration_s"])},
        "tags": content["tags"], "merged": content["merged"],
    }  # fmt: skip


def mistral_delta(text: str) -> dict:
    return {"type": "transcription.text.delta", "text": text}


def mistral_done(transcript: Transcript, granularities: list[str], language: str | None, model: str) -> dict:
    return mistral_json(transcript, granularities, language, model) | {"type": "transcription.done"}


def our_delta(text: str) -> dict:
    return {"token": text}


def our_done(transcript: Transcript, name: str, model: str) -> dict:
    return {"done": True, "transcription": transcript.merged} | our_json(transcript, name, model)


def _compression(text: str) -> float:
    """As Whisper computes it: how often the text repeats itself."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
