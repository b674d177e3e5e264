"""Synthesis: the same bytes for the same seed, splits that share no sentence, tags that can be heard."""

import hashlib
import json
import re
import time

import numpy as np
import pytest

from conftest import REPO
from evoxtral_train.config.data import Clips, SynthConfig
from evoxtral_train.config.sections import Tracking
from evoxtral_train.data.manifest import read_manifest
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import synth
from evoxtral_train.synthesis.scripts import Grammar, draw_scripts
from evoxtral_train.synthesis.synthesizer import EMOTION_STYLES, VOICES, Style, Synthesizer
from evoxtral_train.text.tags import BASE_TAGS, find_tags, strip_tags

GRAMMAR = REPO / "data/scripts/grammar.yaml"
SENTENCE = "the teacher sold the old car before lunch."


@pytest.fixture(scope="module")
def speak():
    synthesizer = Synthesizer()
    return lambda text, voice=0, seed=5: synthesizer.render(text, VOICES[voice], seed)


def test_an_emotion_can_be_weaker(speak):
    weaker = Synthesizer(emotions=EMOTION_STYLES | {"sad": Style(rate=0.86)})
    sad, neutral = f"[sad] {SENTENCE}", SENTENCE
    seconds = [len(clip.samples) for clip in (speak(neutral), weaker.render(sad, VOICES[0], 5), speak(sad))]
    assert seconds == sorted(seconds)
    assert np.array_equal(weaker.render(neutral, VOICES[0], 5).samples, speak(neutral).samples)


def config(folder, **named) -> SynthConfig:
    clips = Clips(train=6, validation=2, test=2)
    named = {"clips": clips, "seed": 11, "tracking": Tracking(mode="disabled"), **named}
    return SynthConfig(output=folder, grammar=GRAMMAR, **named)


def content(folder) -> dict[str, str]:
    files = [folder / "manifest.jsonl", *sorted((folder / "audio").iterdir())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes(tmp_path):
    synth.run(config(tmp_path / "a"), Options())
    synth.run(config(tmp_path / "b"), Options())
    time.sleep(1.1)  # espeak-ng would seed its noise by the second
    synth.run(config(tmp_path / "later"), Options())
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "later")
    assert len(content(tmp_path / "a")) == 11
    synth.run(config(tmp_path / "c", seed=12), Options())
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_two_processes_equal_one(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "_CHUNK_CLIPS", 4)
    for processes in (1, 2):
        synth.run(config(tmp_path / str(processes), processes=processes), Options())
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_resumed_equals_uninterrupted(tmp_path, monkeypatch):
    synth.run(config(tmp_path / "whole"), Options())
    real, calls = Synthesizer.render, []

    def stop_after_four(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    monkeypatch.setattr(Synthesizer, "render", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        synth.run(config(tmp_path / "cut"), Options())
    assert not (tmp_path / "cut" / "complete.json").exists()
    with pytest.raises(UsageError, match="there is an unfinished run here — use --resume"):
        synth.run(config(tmp_path / "cut"), Options())
    with pytest.raises(UsageError, match="cannot resume: changed since this run began: seed"):
        synth.run(config(tmp_path / "cut", seed=12), Options(resume=True))
    synth.run(config(tmp_path / "cut"), Options(resume=True))
    assert len(calls) == 5 + 6  # the four clips that were done are not spoken again
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_scripts_of_a_corpus():
    scripts = draw_scripts(Grammar.load(GRAMMAR), {"train": 400, "validation": 100, "test": 100}, 0.3, seed=2)
    sentences = {}
    for script in scripts:
        for sentence in re.findall(r"[^.?]+[.?]", strip_tags(script.text)):
            sentences.setdefault(sentence.strip(), set()).add(script.split)
    assert max(len(splits) for splits in sentences.values()) == 1
    for split in ("train", "validation", "test"):
        texts = [script.text for script in scripts if script.split == split]
        assert sum(not find_tags(text) for text in texts) == round(0.3 * len(texts))
    counts = {tag: sum(find_tags(script.text).count(tag) for script in scripts) for tag in BASE_TAGS}
    assert min(counts.values()) > 20, counts


def test_the_manifest_knows_every_time(spoken, tag_rules):
    rows, rejected = read_manifest(spoken / "manifest.jsonl", tag_rules)
    assert (len(rows), rejected) == (36, [])
    for row in rows:
        assert [word["word"] for word in row.words] == re.sub(r"[.,?]", "", strip_tags(row.text)).split()
        assert sorted(event["tag"] for event in row.events) == sorted(find_tags(row.text))
        for span in [*row.words, *row.events]:
            assert 0 <= span["start_s"] < span["end_s"]
        starts = [word["start_s"] for word in row.words]
        assert starts == sorted(starts)


def loudness_db(samples):
    return 10 * np.log10(np.mean(samples**2))


def span(clip, tag):
    event = next(event for event in clip.events if event["tag"] == tag)
    return clip.samples[int(event["start_s"] * 16_000) : int(event["end_s"] * 16_000)]


def voicing(samples):
    """Median over 40 ms frames of the autocorrelation's peak between 60 and 450 Hz."""
    frames = samples[: len(samples) // 640 * 640].reshape(-1, 640)
    frames = frames[np.sqrt((frames**2).mean(axis=1)) > 0.3 * np.sqrt((samples**2).mean())]
    peaks = []
    for frame in frames:
        correlation = np.correlate(frame, frame, "full")[639:]
        peaks.append(correlation[35:266].max() / correlation[0])
    return float(np.median(peaks))


@pytest.mark.parametrize("voice", range(len(VOICES)))
def test_deliveries_and_the_pause_can_be_heard(speak, voice):
    plain = speak(SENTENCE, voice)
    whisper, shout = speak(f"[whispers] {SENTENCE}", voice), speak(f"[shouts] {SENTENCE}", voice)
    assert voicing(span(whisper, "whispers")) < voicing(plain.samples) - 0.2
    assert loudness_db(span(shout, "shouts")) > loudness_db(plain.samples) + 6
    stammer = speak(f"[stammers] {SENTENCE}", voice)
    assert len(stammer.samples) > len(plain.samples) + 0.4 * 16_000
    pause = span(speak(f"the teacher sold it, [pause] {SENTENCE}", voice), "pause")
    assert len(pause) >= 0.9 * 16_000
    assert loudness_db(pause) < -55


@pytest.mark.parametrize("sound", ["laughs", "sighs", "gasps", "clears throat", "crying"])
def test_sounds_stand_where_the_text_has_them(speak, sound):
    clip = speak(f"{SENTENCE} [{sound}] {SENTENCE}")
    event = clip.events[0]
    assert event["tag"] == sound
    assert clip.words[7]["end_s"] <= event["start_s"] < event["end_s"] <= clip.words[8]["start_s"]
    assert loudness_db(span(clip, sound)) > -40
    assert 0.2 < event["end_s"] - event["start_s"] < 2.0


def test_emotions_differ_in_rate_and_loudness(speak):
    spans = {tag: span(speak(f"[{tag}] {SENTENCE}"), tag) for tag in ("excited", "sad", "angry", "nervous", "calm", "frustrated")}
    seconds = {tag: len(samples) / 16_000 for tag, samples in spans.items()}
    level = {tag: loudness_db(samples) for tag, samples in spans.items()}
    assert seconds["nervous"] < seconds["excited"] < seconds["angry"] < seconds["frustrated"] < seconds["calm"]
    assert level["angry"] > level["frustrated"] > level["calm"] > level["nervous"] > level["sad"]


def test_the_users_own_scripts(tmp_path):
    path = tmp_path / "scripts.jsonl"
    texts = [
        {"id": "one", "text": "[sighs] hello there.", "split": "train"},
        {"text": "[sihgs] hello."},
        {"text": "hello [calm]"},
        {"id": "one", "text": "again."},
        {"text": "no tag here.", "split": "test"},
        {"id": "../../up", "text": "out of the folder."},
        {"text": "no such split.", "split": "dev"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts), "utf-8")
    report = synth.run(config(tmp_path / "out", scripts=path), Options())
    assert (report.facts["clips written"], report.facts["rejected"]) == (3, 4)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out/rejected.jsonl").read_text("utf-8").splitlines()]
    assert [reason.split(" — ")[0] for reason in reasons] == [
        "unknown tag [sihgs]", "duplicate id 'one'", "unknown split 'dev'",
        "no words follow [calm]",
    ]  # fmt: skip


def test_unknown_voice_and_missing_grammar(tmp_path):
    with pytest.raises(UsageError, match="unknown voice 'bob'"):
        synth.run(config(tmp_path / "out", voices=["bob"]), Options())
    with pytest.raises(UsageError, match="no such grammar"):
        Grammar.load(tmp_path / "none.yaml")


def test_nothing_to_speak(speak):
    with pytest.raises(RowError, match="empty text"):
        speak("")
