"""`data check` on a dirty corpus: every fault planted once, each found where it is, and nothing else."""

import json

import numpy as np
import pytest
import soundfile

from conftest import TINY_BASE
from evoxtral_train.config.data import Check, PackConfig
from evoxtral_train.config.sections import Tracking
from evoxtral_train.corpus.checks import Corpus, Sound, check_sound
from evoxtral_train.data.manifest import ManifestRow
from evoxtral_train.stages.data import check
from evoxtral_train.synthesis.synthesizer import VOICES, Synthesizer

TEXTS = {
    "ann-1": ("train", "[sighs] the letter from my brother arrived on monday morning."),
    "ann-2": ("train", "we should repair the old bridge before the winter comes."),
    "bob-1": ("train", "[excited] nobody told me that the concert was already sold out!"),
    "bob-2": ("train", "her grandmother bakes bread with walnuts every single week. [laughs]"),
    "cem-1": ("validation", "[whispers] please close the window because it is raining."),
    "cem-2": ("validation", "the museum opens at nine, [pause] but the garden opens earlier."),
    "dot-1": ("test", "yesterday i finally found my glasses under the piano."),
    "dot-2": ("test", "[clears throat] this recipe needs three eggs and a little salt."),
}


@pytest.fixture(scope="module")
def speak():
    synthesizer = Synthesizer()
    return lambda text, seed: synthesizer.render(text, VOICES[seed % len(VOICES)], seed).samples


@pytest.fixture
def findings(tmp_path, speak):
    """The findings of `data check` on the clean rows and on others: {(id, kind): reason}."""
    sounds = {name: speak(text, seed) for seed, (name, (_, text)) in enumerate(TEXTS.items())}

    def findings(*others: dict, allow=()) -> dict:
        rows = []
        for name, (split, text) in TEXTS.items():
            rows.append({"id": name, "text": text, "split": split, "speaker": name[:3], "samples": sounds[name]})
        with (tmp_path / "manifest.jsonl").open("w", encoding="utf-8") as file:
            for row in [*rows, *others]:
                samples = row.pop("samples", None)
                if samples is not None:
                    soundfile.write(tmp_path / f"{row['id']}.flac", samples, 16_000)
                file.write(json.dumps({"audio": f"{row['id']}.flac", **row}) + "\n")
        config = PackConfig(
            manifest=tmp_path / "manifest.jsonl", output=tmp_path / "packed", base=str(TINY_BASE),
            tracking=Tracking(mode="disabled"), check=Check(allow=list(allow)),
        )  # fmt: skip
        findings.report = check.run(config, tmp_path / "findings.jsonl")
        found = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text("utf-8").splitlines()]
        assert len({(each["id"], each["kind"]) for each in found}) == len(found)
        return {(each["id"], each["kind"]): each["reason"] for each in found}

    findings.sounds = sounds
    return findings


def dirty(sounds, speak, tmp_path) -> dict[tuple[str, str], dict]:
    """(id, kind of the one fault that it has) -> the row."""
    (tmp_path / "unreadable.flac").write_bytes(b"fLaC but no more")
    said = "my uncle walked slowly across the frozen lake with a lantern."
    rows = [
        ("rejected", "unreadable", "train", "ann", "a tall stranger asked for the way to the station.", None),
        ("rejected", "unknown-tag", "train", "ann", "[yodels] a small kitten slept inside his hat.", sounds["ann-1"]),
        ("rejected", "brackets", "train", "ann", "[sighs the forest was dark and very quiet.", sounds["ann-1"]),
        ("rejected", "no-room", "train", "ann", "[frustrated] " * 40 + "purple flowers grew there.", sounds["ann-1"]),
        ("clipped", "clipped", "train", "ann", said, np.clip(30 * speak(said, 20), -1, 1)),
        ("silent", "silent", "train", "bob", "seven sailors sang about the sea.", 1e-4 * sounds["bob-1"]),
        ("too_little_speech", "cut", "train", "bob", "we counted " + "very " * 12 + "many geese.", sounds["bob-2"][:16_000]),
        ("too_much_speech", "long", "train", "bob", "thank you.", np.concatenate([sounds["bob-1"], sounds["bob-2"]])),
        ("duplicate_audio", "twin", "train", "ann", "an orange fox jumped over the broken wooden fence twice.", sounds["ann-2"]),
        ("near_duplicate_text", "alike", "train", "ann", "we should repair the old bridges before the winter comes.",
         speak("we should repair the old bridges before the winter comes.", 21)),
        ("sentence_in_two_splits", "leak", "test", "dot", "Please, close the window: because it is raining!",
         speak("please close the window because it is raining.", 22)),
        ("speaker_in_two_splits", "voice", "test", "bob", "green tea tastes better from a thin cup.",
         speak("green tea tastes better from a thin cup.", 23)),
    ]  # fmt: skip
    return {
        (name, kind): {"id": name, "text": text, "split": split, "speaker": speaker, "samples": samples}
        for kind, name, split, speaker, text, samples in rows
    }


def test_a_clean_corpus_has_no_finding(findings):
    assert findings() == {}
    assert findings.report.exit_code == 0
    assert findings.report.facts["rows"] == "8 = 8 good + 0 rejected"


def test_every_planted_fault_is_found_and_nothing_else(findings, speak, tmp_path):
    planted = dirty(findings.sounds, speak, tmp_path)
    found = findings(*planted.values())
    assert set(found) == set(planted)
    assert findings.report.exit_code == 1
    expected = {
        ("unreadable", "rejected"): "audio cannot be read",
        ("unknown-tag", "rejected"): "unknown tag [yodels]",
        ("brackets", "rejected"): "unclosed bracket at character 0",
        ("no-room", "rejected"): "tokens and EOS, but only",
        ("silent", "silent"): "dBFS — is this the right file?",
        ("cut", "too_little_speech"): "in 1.0 s: less than",
        ("long", "too_much_speech"): "is the transcript complete?",
        ("twin", "duplicate_audio"): "the same audio as ann-2 (row 2)",
        ("alike", "near_duplicate_text"): "99% the words of ann-2 (row 2)",
        ("leak", "sentence_in_two_splits"): "is in test and, as cem-1 (row 5), in validation",
        ("voice", "speaker_in_two_splits"): "'bob' is in test and, as bob-1 (row 3), in train",
    }
    for key, reason in expected.items():
        assert reason in found[key], found[key]
    lines = findings.report.table.splitlines()
    assert len(lines) == len(planted)
    assert lines[0].startswith(f"{tmp_path / 'manifest.jsonl'}:9: unreadable: rejected: audio cannot be read")


@pytest.mark.parametrize("name", ["clipped", "silent", "twin", "alike", "leak", "voice"])
def test_each_fault_is_found_alone_too(name, findings, speak, tmp_path):
    [(key, row)] = [(key, row) for key, row in dirty(findings.sounds, speak, tmp_path).items() if key[0] == name]
    assert set(findings(row)) == {key}


def test_what_is_allowed_is_told_and_is_no_failure(findings, speak, tmp_path):
    row = dirty(findings.sounds, speak, tmp_path)["voice", "speaker_in_two_splits"]
    assert set(findings(row, allow=["speaker_in_two_splits"])) == {("voice", "speaker_in_two_splits")}
    assert findings.report.exit_code == 0
    assert findings.report.facts["speaker in two splits"] == "1, allowed by check.allow"
    assert findings.report.table == ""


def test_the_splits_of_training_may_share_sentences_and_speakers(findings, speak):
    text = "we should repair the old bridge before the winter comes."
    row = {"id": "again", "text": text, "split": "raft", "speaker": "ann", "samples": speak(text, 30)}
    assert set(findings(row)) == {("again", "near_duplicate_text")}


def test_a_wav_and_its_flac_are_one_sound(tmp_path, speak):
    samples = speak("hello there.", 3)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", soundfile.read(tmp_path / "a.wav", dtype="int16")[0], 16_000)
    from evoxtral_train.data.audio import read_audio

    one, other = (Sound.of(read_audio(tmp_path / name, 30)) for name in ("a.flac", "a.wav"))
    assert one == other


def test_near_duplicates_are_those_of_the_slow_definition(tmp_path):
    """Against comparing every pair, on sentences that a grammar makes: many are alike."""
    from rapidfuzz import fuzz

    from conftest import REPO
    from evoxtral_train.synthesis.scripts import Grammar

    grammar, rng = Grammar.load(REPO / "data/scripts/grammar.yaml"), np.random.default_rng(0)
    texts = list(dict.fromkeys(grammar.sentence(rng).lower().replace(".", "").replace(",", "") for _ in range(600)))
    corpus = Corpus()
    for index, text in enumerate(texts):
        row = ManifestRow(id=str(index), audio=tmp_path, text=text, split="train", line=index + 1)
        corpus.add(row, Sound(1.0, str(index).encode(), 0.0, -20.0))
    found = {int(each.id) for each in corpus.findings(Check()) if each.kind == "near_duplicate_text"}
    slow = {
        later
        for later in range(len(texts))
        if any(fuzz.ratio(" ".join(texts[later].split()), " ".join(texts[earlier].split())) >= 90 for earlier in range(later))
    }
    assert len(slow) > 20
    assert found <= slow
    assert len(found) >= 0.97 * len(slow), f"MinHash found {len(found)} of {len(slow)}"


def test_a_long_pause_needs_its_tag(tmp_path):
    """Seconds without words are explained by a tag, and only by a tag."""
    sound = Sound(duration_s=9.0, digest=b"", clipped_share=0.0, loudest_dbfs=-20.0)

    def kinds(text):
        row = ManifestRow(id="a", audio=tmp_path, text=text, split="train", line=1)
        return [each.kind for each in check_sound(row, sound, Check())]

    assert kinds("yes, i know.") == ["too_much_speech"]
    assert kinds("yes, [pause] i know.") == []


@pytest.mark.slow
def test_any_number_of_processes_finds_the_same(findings, speak, tmp_path, monkeypatch):
    found = findings(*dirty(findings.sounds, speak, tmp_path).values())
    monkeypatch.setattr(check, "_CHUNK_ROWS", 3)
    monkeypatch.setattr(check, "usable_cores", lambda: 2)
    pools = []
    real = check.worker_pool
    monkeypatch.setattr(check, "worker_pool", lambda *arguments: pools.append(arguments[0]) or real(*arguments))
    lines = findings.report.table, (tmp_path / "findings.jsonl").read_bytes()
    assert findings(*dirty(findings.sounds, speak, tmp_path).values()) == found
    assert pools == [2]
    assert (findings.report.table, (tmp_path / "findings.jsonl").read_bytes()) == lines
