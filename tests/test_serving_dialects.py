"""The three WebSocket protocols, message by message. What the servers send is read by the clients' own classes."""

import base64
import json

import numpy as np
import pytest
import soxr
from mistralai.extra.realtime.connection import UnknownRealtimeEvent, parse_realtime_event
from openai.types import realtime as openai_types

from evoxtral_train.serving.dialects import Commit, End, Feed, InvalidMessage, Reply, Session, parse
from evoxtral_train.serving.dialects.mistral import Mistral
from evoxtral_train.serving.dialects.openai import OpenAI
from evoxtral_train.serving.dialects.own import as_message
from evoxtral_train.serving.dialects.realtime import Realtime
from evoxtral_train.serving.dialects.vllm import Vllm
from evoxtral_train.serving.events import Heard, StreamEnded, TagHeard, TextDelta, UtteranceEnded, UtteranceStarted, WordHeard
from evoxtral_train.serving.pcm import PcmReader
from evoxtral_train.transcription.transcript import Segment, Tag, Transcript, Word

SESSION = Session("s1", 1_790_000_000, "evoxtral", 2.0)
SIGHS = Tag("sighs", 0.9, 0.4)
COME_BACK = Segment(0.0, 1.5, "come back", [Word("come", 0.5, 0.9), Word("back", 0.9, 1.25)], [SIGHS])
AT_FIVE = Segment(4.0, 5.0, "at five")
SIGHS_JSON = {"tag": "sighs", "confidence": 0.9, "at_s": 0.4, "kept": True, "utterance": 0}
TRANSCRIPT = Transcript(None, 6.0, [COME_BACK, AT_FIVE], "timed")
STREAM = [
    UtteranceStarted(0, 0.0),
    TagHeard(0, SIGHS),
    TextDelta(0, "come"),
    WordHeard(0, COME_BACK.words[0]),
    Heard(1.2, 1.0),
    TextDelta(0, " back"),
    UtteranceEnded(0, COME_BACK, "[sighs] come back", "silence"),
    UtteranceStarted(1, 4.0),
    TextDelta(1, "at five"),
    UtteranceEnded(1, AT_FIVE, "at five", "end"),
    StreamEnded(TRANSCRIPT, 40),
]
GARBAGE = ["", "nonsense", "[]", "7", '"a"', "{}", '{"type": 3}', '{"type": ["session.update"]}', "[" * 100_000, "9" * 5_000]
OPENAI_EVENTS = {
    "session.created": openai_types.SessionCreatedEvent,
    "session.updated": openai_types.SessionUpdatedEvent,
    "error": openai_types.RealtimeErrorEvent,
    "input_audio_buffer.speech_started": openai_types.InputAudioBufferSpeechStartedEvent,
    "input_audio_buffer.speech_stopped": openai_types.InputAudioBufferSpeechStoppedEvent,
    "input_audio_buffer.committed": openai_types.InputAudioBufferCommittedEvent,
    "conversation.item.input_audio_transcription.delta": openai_types.ConversationItemInputAudioTranscriptionDeltaEvent,
    "conversation.item.input_audio_transcription.completed": openai_types.ConversationItemInputAudioTranscriptionCompletedEvent,
}


def _told(dialect, events=STREAM) -> list[dict]:
    return [message for event in events for message in dialect.write(event)]


def _brief(messages: list[dict]) -> list[tuple]:
    """(the type's last word, what it says) of OpenAI's events."""
    keys = ("delta", "transcript", "item_id", "audio_start_ms", "audio_end_ms")
    return [(each["type"].split(".")[-1], *[each[key] for key in keys if key in each]) for each in messages]


def _append(pcm: bytes, kind: str = "input_audio_buffer.append") -> dict:
    return {"type": kind, "audio": base64.b64encode(pcm).decode()}


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_refused_in_one_line(text):
    with pytest.raises(InvalidMessage) as error:
        parse(text, 200_000)
    assert error.value.code in ("invalid_json", "invalid_message")
    assert len(error.value.what) < 120


def test_binary_frames_and_long_messages_are_refused():
    with pytest.raises(InvalidMessage, match="text frames"):
        parse(None, 100)
    with pytest.raises(InvalidMessage, match="at most 100 at a time") as error:
        parse('{"type": "%s"}' % ("a" * 100), 100)  # noqa: UP031
    assert error.value.code == "message_too_large"


@pytest.mark.parametrize("dialect", [Vllm, OpenAI, Mistral])
@pytest.mark.parametrize("audio", [None, 7, ["AAAA"], "AAA", "A A A=", "été=", "{}=="])
def test_bad_audio_is_refused(dialect, audio):
    kind = "input_audio.append" if dialect is Mistral else "input_audio_buffer.append"
    with pytest.raises(InvalidMessage) as error:
        dialect(SESSION).read({"type": kind, "audio": audio})
    assert error.value.code == "invalid_audio"


@pytest.mark.parametrize("dialect", [Vllm, OpenAI, Mistral])
@pytest.mark.parametrize("kind", ["nonsense", "response.create", "x" * 1_000])
def test_unknown_types_are_refused_and_the_known_ones_named(dialect, kind):
    with pytest.raises(InvalidMessage, match=r"send one of: session\.update") as error:
        dialect(SESSION).read({"type": kind})
    assert len(error.value.what) < 250


def test_empty_audio_is_nothing():
    assert Vllm(SESSION).read(_append(b"")) == []


# vLLM


def test_vllm_begins_and_ends():
    dialect = Vllm(SESSION)
    assert dialect.read({"type": "session.update", "model": "mistralai/Voxtral-Mini-4B-Realtime-2602"}) == []
    assert dialect.read({"type": "input_audio_buffer.commit"}) == []
    assert dialect.read(_append(b"\1\0\2\0")) == [Feed(b"\1\0\2\0")]
    assert dialect.read({"type": "input_audio_buffer.commit", "final": True}) == [End()]
    assert dialect.rate_hz == 16_000


@pytest.mark.parametrize(
    "message", [{"type": "session.update", "model": 3}, {"type": "input_audio_buffer.commit", "final": "yes"}]
)
def test_vllm_refuses_wrong_types(message):
    with pytest.raises(InvalidMessage):
        Vllm(SESSION).read(message)


def test_vllm_writes_one_text():
    done = {
        "type": "transcription.done", "text": "come back at five",
        "usage": {"prompt_tokens": 75, "completion_tokens": 40, "total_tokens": 115},
        "tags": [SIGHS_JSON], "merged": "[sighs] come back at five", "code": None,
    }  # fmt: skip
    first = [
        {"type": "transcription.delta", "delta": "", "tags": [SIGHS_JSON]},
        {"type": "transcription.delta", "delta": "come"},
        {"type": "transcription.delta", "delta": " back"},
        {"type": "transcription.delta", "delta": " at five"},
        done,
    ]
    dialect = Vllm(SESSION)
    assert _told(dialect) == first
    assert _told(dialect) == first, "another transcription begins anew"


def test_vllm_writes_an_empty_text():
    (done,) = Vllm(SESSION).write(StreamEnded(Transcript(None, 0.0, []), 0))
    assert (done["text"], done["tags"], done["merged"], done["usage"]["total_tokens"]) == ("", [], "", 0)


def test_vllm_errors_are_flat():
    assert Vllm(SESSION).error("invalid_json", "what") == {"type": "error", "error": "what", "code": "invalid_json"}


# OpenAI


def _openai_update(**audio_format) -> dict:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": {"format": audio_format}}}}


def test_openai_answers_an_update_with_what_holds():
    dialect = OpenAI(SESSION)
    (reply,) = dialect.read(_openai_update(type="audio/pcm", rate=16_000) | {"event_id": "mine"})
    assert reply.message == {
        "type": "session.updated", "event_id": "event_s1_1",
        "session": {
            "type": "transcription", "object": "realtime.transcription_session", "id": "s1",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 16_000}, "transcription": {"model": "evoxtral"},
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 2000},
                }
            },
        },
    }  # fmt: skip
    assert dialect.rate_hz == 16_000
    assert OpenAI(SESSION).rate_hz == 24_000
    assert OpenAI(Session("s1", 0, "evoxtral", 2.0, 16_000)).rate_hz == 16_000


@pytest.mark.parametrize(
    "session",
    [
        7, "transcription", {"type": "realtime"}, {"audio": 7}, {"audio": {"input": []}},
        {"audio": {"input": {"format": "pcm16"}}},
        {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, {"audio": {"input": {"format": {"rate": 44_100}}}},
        {"audio": {"input": {"format": {"rate": "24000"}}}}, {"audio": {"input": {"format": {"rate": True}}}},
        {"audio": {"input": {"format": {"rate": [16_000]}}}},
    ],
)  # fmt: skip
def test_openai_refuses_sessions_that_it_cannot_hold(session):
    with pytest.raises(InvalidMessage) as error:
        OpenAI(SESSION).read({"type": "session.update", "session": session, "event_id": "mine"})
    assert error.value.event_id == "mine"


def test_the_rate_holds_once_there_is_audio():
    dialect = OpenAI(SESSION)
    dialect.read(_append(b"\1\0"))
    assert isinstance(dialect.read(_openai_update(rate=24_000))[0], Reply)
    with pytest.raises(InvalidMessage, match="cannot change"):
        dialect.read(_openai_update(rate=16_000))


def test_openai_writes_an_item_for_each_utterance():
    dialect = OpenAI(SESSION)
    messages = _told(dialect)
    assert _brief(messages) == [
        ("speech_started", "item_s1_1", 0),
        ("delta", "", "item_s1_1"),
        ("delta", "come", "item_s1_1"),
        ("delta", " back", "item_s1_1"),
        ("speech_stopped", "item_s1_1", 1500),
        ("committed", "item_s1_1"),
        ("completed", "come back", "item_s1_1"),
        ("speech_started", "item_s1_2", 4000),
        ("delta", "at five", "item_s1_2"),
        ("speech_stopped", "item_s1_2", 5000),
        ("committed", "item_s1_2"),
        ("completed", "at five", "item_s1_2"),
    ]
    assert messages[1]["tags"] == [SIGHS_JSON]
    assert messages[6] == {
        "type": "conversation.item.input_audio_transcription.completed", "event_id": "event_s1_7", "item_id": "item_s1_1",
        "content_index": 0, "transcript": "come back", "usage": {"type": "duration", "seconds": 1.5},
        "tags": [SIGHS_JSON], "merged": "[sighs] come back",
    }  # fmt: skip
    assert [message["previous_item_id"] for message in messages if "previous_item_id" in message] == [None, "item_s1_1"]
    assert len({message["event_id"] for message in messages}) == len(messages)


def test_openai_answers_an_empty_commit_at_once():
    dialect = OpenAI(SESSION)
    replies = [action.message for action in dialect.read({"type": "input_audio_buffer.commit"})]
    assert _brief(replies) == [("committed", "item_s1_1"), ("completed", "", "item_s1_1")]


def test_openai_answers_each_commit_once():
    second = b"\0\0" * 24_000
    dialect = OpenAI(SESSION)
    dialect.read(_append(second))
    assert dialect.read({"type": "input_audio_buffer.commit"}) == [Commit()]
    assert dialect.read({"type": "input_audio_buffer.commit"}) == [Commit()], "the first one has no answer yet"
    dialect.write(UtteranceStarted(0, 0.0))
    assert dialect.write(Heard(1.0, 1.0)) == [], "the utterance is not finished"
    ended = dialect.write(UtteranceEnded(0, Segment(0.0, 1.0, "come"), "come", "commit"))
    assert _brief(ended) == [("committed", "item_s1_1"), ("completed", "come", "item_s1_1")]
    assert _brief(dialect.write(Heard(1.0, 1.0))) == [("committed", "item_s1_2"), ("completed", "", "item_s1_2")]
    assert dialect.write(Heard(1.0, 1.0)) == []


def test_openai_answers_a_commit_of_silence_once_it_was_heard():
    dialect = OpenAI(SESSION)
    dialect.read(_append(b"\0\0" * 24_000))
    dialect.read({"type": "input_audio_buffer.commit"})
    assert dialect.write(Heard(1.0, 0.9)) == []
    assert _brief(dialect.write(Heard(1.0, 1.0)))[-1] == ("completed", "", "item_s1_1")


def test_openai_does_not_take_an_utterance_for_an_earlier_empty_commit():
    dialect = OpenAI(SESSION)
    for _ in range(2):
        dialect.read(_append(b"\0\0" * 24_000))
        dialect.read({"type": "input_audio_buffer.commit"})
    dialect.write(UtteranceStarted(0, 1.0))
    ended = dialect.write(UtteranceEnded(0, Segment(1.0, 2.0, "come"), "come", "commit"))
    assert [message["transcript"] for message in ended if "transcript" in message] == ["", "come"]
    assert dialect.write(StreamEnded(Transcript(None, 2.0, []), 0)) == []


def test_openai_classes_read_all_of_it():
    dialect = OpenAI(SESSION)
    messages = [*Realtime(SESSION).greet(), *_told(dialect), dialect.error("invalid_json", "what", "mine")]
    messages += [action.message for action in dialect.read({"type": "input_audio_buffer.commit"})]
    messages += [action.message for action in dialect.read(_openai_update(rate=24_000))]
    for message in messages:
        event = OPENAI_EVENTS[message["type"]].model_validate(json.loads(json.dumps(message)), strict=True)
        assert all(getattr(event, name) is not None for name in ("type", "event_id"))
    assert {message["type"] for message in messages} == OPENAI_EVENTS.keys()


# Mistral


def test_mistral_reads():
    dialect = Mistral(SESSION)
    assert dialect.read(_append(b"\1\0", "input_audio.append")) == [Feed(b"\1\0")]
    assert dialect.read({"type": "input_audio.flush"}) == [Commit()]
    assert dialect.read({"type": "input_audio.end"}) == [End()]


def test_mistral_takes_262144_bytes_at_a_time():
    dialect = Mistral(SESSION)
    assert len(dialect.read(_append(bytes(262_144), "input_audio.append"))) == 1
    with pytest.raises(InvalidMessage, match="262,144") as error:
        dialect.read(_append(bytes(262_145), "input_audio.append"))
    assert error.value.code == "message_too_large"


@pytest.mark.parametrize(
    "session", [7, {"audio_format": "pcm"}, {"audio_format": {"encoding": "pcm_mulaw", "sample_rate": 16_000}},
    {"audio_format": {"encoding": "pcm_s16le", "sample_rate": 8_000}}],
)  # fmt: skip
def test_mistral_refuses_formats(session):
    with pytest.raises(InvalidMessage):
        Mistral(SESSION).read({"type": "session.update", "session": session})


def test_mistral_writes_deltas_and_segments():
    dialect = Mistral(SESSION)
    messages = _told(dialect)
    segment = {"text": "come back", "start": 0.0, "end": 1.5, "tags": [SIGHS_JSON], "merged": "[sighs] come back"}
    assert messages[:4] == [
        {"type": "transcription.text.delta", "text": "", "tags": [SIGHS_JSON]},
        {"type": "transcription.text.delta", "text": "come"},
        {"type": "transcription.text.delta", "text": " back"},
        {"type": "transcription.segment", **segment},
    ]
    assert [message["type"] for message in messages[4:]] == [
        "transcription.text.delta", "transcription.segment", "transcription.done",
    ]  # fmt: skip
    assert "".join(message["text"] for message in messages if "delta" in message["type"]) == "come back at five"
    done = messages[-1]
    assert (done["text"], done["tags"], done["merged"]) == ("come back at five", [SIGHS_JSON], "[sighs] come back at five")
    assert done["segments"][0] == {"type": "transcription_segment", **segment}
    assert done["usage"] == {"prompt_tokens": 75, "completion_tokens": 40, "total_tokens": 115, "prompt_audio_seconds": 6}


def test_mistral_classes_read_all_of_it():
    dialect = Mistral(SESSION)
    messages = [*dialect.greet(), *_told(dialect), dialect.error("server_full", "what")]
    update = {"audio_format": {"encoding": "pcm_s16le", "sample_rate": 24_000}, "target_streaming_delay_ms": 480}
    messages += [action.message for action in dialect.read({"type": "session.update", "session": update})]
    for message in messages:
        event = parse_realtime_event(json.loads(json.dumps(message)))
        assert not isinstance(event, UnknownRealtimeEvent), event
    assert messages[-1]["session"]["audio_format"]["sample_rate"] == 24_000
    assert parse_realtime_event(messages[1]).tags == [SIGHS_JSON]


# Which of the two on /v1/realtime


def test_the_greeting_is_both_vllms_and_openais():
    (created,) = Realtime(SESSION).greet()
    assert created["type"] == "session.created"
    assert (created["id"], created["created"], created["event_id"]) == ("s1", 1_790_000_000, "event_s1_1")
    assert created["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}


@pytest.mark.parametrize(
    ("message", "dialect"),
    [
        ({"type": "session.update", "session": {}}, OpenAI),
        ({"type": "session.update", "session": 7}, OpenAI),
        ({"type": "session.update", "model": "m"}, Vllm),
        ({"type": "session.update"}, Vllm),
        ({"type": "input_audio_buffer.commit"}, Vllm),
        ({"type": "input_audio_buffer.append", "audio": ""}, Vllm),
        ({"type": "nonsense"}, Vllm),
    ],
)
def test_the_first_message_tells_the_dialect(message, dialect):
    chosen = Realtime(SESSION).chosen(message)
    assert type(chosen) is dialect
    assert chosen.chosen({"type": "session.update", "session": {}}) is chosen


def test_an_early_error_has_both_forms():
    error = Realtime(SESSION).error("server_full", "all are in use")
    assert (error["code"], error["error"]["code"], error["error"]["message"]) == ("server_full", "server_full", "all are in use")
    openai_types.RealtimeErrorEvent.model_validate(error, strict=True)


# Our own events


def test_own_events():
    groups = {"sighs": "sound"}
    assert [as_message(event, groups) for event in STREAM[:7]] == [
        {"type": "evoxtral.utterance.started", "utterance": 0, "start_s": 0.0},
        {
            "type": "evoxtral.tag", "utterance": 0, "tag": "sighs", "confidence": 0.9, "at_s": 0.4, "kept": True,
            "group": "sound",
        },
        {"type": "evoxtral.text", "utterance": 0, "delta": "come"},
        {"type": "evoxtral.word", "utterance": 0, "word": "come", "start_s": 0.5, "end_s": 0.9},
        {"type": "evoxtral.heard", "received_s": 1.2, "decoded_s": 1.0, "lag_s": 0.2},
        {"type": "evoxtral.text", "utterance": 0, "delta": " back"},
        {
            "type": "evoxtral.utterance.ended", "utterance": 0, "reason": "silence",
            "segment": {
                "start_s": 0.0, "end_s": 1.5, "text": "come back", "merged": "[sighs] come back",
                "words": [
                    {"word": "come", "start_s": 0.5, "end_s": 0.9}, {"word": "back", "start_s": 0.9, "end_s": 1.25},
                ],
                "tags": [{"tag": "sighs", "confidence": 0.9, "at_s": 0.4, "kept": True, "group": "sound"}],
            },
        },
    ]  # fmt: skip
    ended = as_message(STREAM[-1], groups)
    assert ended == {"type": "evoxtral.ended", "transcript": TRANSCRIPT.as_json(), "tokens": 40, "code": None}


# PCM16


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
@pytest.mark.parametrize("piece_bytes", [1, 3, 4_801, 10**9])
def test_pcm_is_the_same_however_it_is_cut(rate_hz, piece_bytes):
    samples = np.random.default_rng(1).integers(-20_000, 20_000, 2_401, dtype=np.int16)
    pcm, reader = samples.tobytes(), PcmReader(rate_hz)
    for _ in range(2):  # after `flush`, as at the start
        pieces = [reader.read(pcm[start : start + piece_bytes]) for start in range(0, len(pcm), piece_bytes)]
        heard = np.concatenate([*pieces, reader.flush()])
        whole = (samples / 32768).astype(np.float32)
        expected = whole if rate_hz == 16_000 else soxr.resample(whole, rate_hz, 16_000)
        assert heard.dtype == np.float32
        np.testing.assert_array_equal(heard, expected)


def test_half_a_sample_at_the_end_is_dropped():
    reader = PcmReader(16_000)
    assert reader.read(b"\0\x40\7").tolist() == [0.5]
    assert reader.flush().tolist() == []
    assert reader.read(b"\0\x40").tolist() == [0.5]
