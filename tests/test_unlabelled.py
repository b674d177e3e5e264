"""Clips without text: packed beside the others, decoded by RAFT, left out wherever a reference is needed, and never read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from conftest import CARD, REPO, TINY_BASE, TINY_OFFLINE_BASE, rows_of
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.data.manifest import iter_manifest
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.dataset.rows import columns_of, with_family_defaults
from evoxtral_train.families.checkpoint import open_family
from evoxtral_train.records import REFERENCE, dump_row

BLANKED = 6


def sets(*settings) -> list[str]:
    return [each for setting in (*settings, "tracking.mode=disabled") for each in ("--set", setting)]


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def blanked(spoken) -> list[dict]:
    """The manifest's rows; of the twelve for RAFT, every other one without text, written in three ways."""
    rows = rows_of(spoken)
    raft = [row for row in rows if row["split"] == "raft"][::2]
    for number, row in enumerate(raft):
        for name in ("words", "events", "text"):
            del row[name]
        row |= ({"text": None}, {"text": " "}, {})[number % 3]
        if number % 2:
            del row["split"]  # it gets raft
    return rows


@pytest.fixture(scope="module")
def mixed(blanked, call, tmp_path_factory):
    """A folder with the packed dataset, and what check, stats and pack printed. Two rows cannot be used."""
    folder = tmp_path_factory.mktemp("mixed")
    good = blanked[0]
    in_train = good | {"id": "in-train", "text": "", "words": [], "events": []}
    bad = [in_train, good | {"id": "timed", "text": None, "split": "raft"}]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*blanked, *bad]), "utf-8")
    packing = sets(f"manifest={manifest}", f"output={folder / 'packed'}", "layout.kind=deferred", "processes=1")
    said = {name: call("data", name, REPO / "configs/demo/pack.yaml", *packing) for name in ("check", "pack")}
    describing = sets(f"manifest={manifest}", f"output={folder / 'stats'}")
    return folder, said | {"stats": call("data", "stats", REPO / "configs/stats.yaml", *describing)}


def test_every_stage_of_the_data_counts_them(mixed):
    folder, said = mixed
    check = said["check"].stdout
    assert said["check"].exit_code == 1  # two rows are rejected
    assert "38 = 36 good + 2 rejected" in check
    assert f"{BLANKED}, for RAFT alone" in check
    assert "`text` is missing or empty, in split train — write the transcript, or use split raft: only RAFT can use" in check
    assert "`words` without `text` — write the transcript, or leave out `words`" in check
    assert "_speech" not in check  # no transcript, so no speed of speech
    stats = json.loads((folder / "stats/stats.json").read_text("utf-8"))
    assert (stats["clips"]["raft"], stats["unlabelled"][0], sum(stats["tags_per_clip"].values())) == (12, BLANKED, 30)
    assert f"{BLANKED} clips, " in said["stats"].stdout
    metrics = json.loads((folder / "packed/metrics.json").read_text("utf-8"))
    assert (metrics["packed"], metrics["rejected"], metrics["raft"], metrics["unlabelled"]) == (36, 2, 12, BLANKED)
    assert f"12, {BLANKED} of them without text, for RAFT alone" in said["pack"].stdout


def test_a_packed_clip_without_text_has_the_same_room_and_no_target(mixed, packed):
    split, labelled = PackedSplit(mixed[0] / "packed", "raft"), PackedSplit(packed["deferred"], "raft")
    assert split.labelled.tolist() == [False, True] * BLANKED
    assert split.row_tokens.tolist() == labelled.row_tokens.tolist()
    assert split.target_tokens.tolist() == (labelled.target_tokens * split.labelled).tolist()
    for index, (ours, theirs) in enumerate(zip(split.examples, labelled.examples, strict=True)):
        if ours.labelled:
            assert ours == theirs
        else:
            assert (ours.text, ours.target_text, ours.target_ids, ours.timed_events, ours.events) == (None,) * 4 + ([],)
        assert np.array_equal(split.mel_of(index, 20), labelled.mel_of(index, 20))


@pytest.mark.parametrize(
    ("base", "kind"),
    [(TINY_BASE, "packed"), (TINY_BASE, "deferred"), (TINY_BASE, "aligned"), (TINY_OFFLINE_BASE, "transcription_request")],
)
def test_every_layout_gives_it_the_same_room(base, kind, spoken, tag_rules):
    family = open_family(base)
    config = PackConfig(
        manifest=".", output=".", base=str(base), layout=Layout(kind=kind), language="en" if base == TINY_OFFLINE_BASE else None
    )
    config = with_family_defaults(config, type(family))
    row = next(each for each in iter_manifest(spoken / "manifest.jsonl", tag_rules) if each.split == "raft")
    labelled, unlabelled = (
        columns_of(each, 100_000, config, family) for each in (row, replace(row, text=None, words=[], events=[]))
    )
    nothing = {"text": None, "target_text": None, "target_ids": None, "events": [], "heard": []}
    assert unlabelled == labelled | nothing != labelled


def test_statistics_and_advice_of_clips_that_all_lack_a_text(blanked, call, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in blanked if not row.get("words")), "utf-8")
    done = call("data", "stats", REPO / "configs/stats.yaml", *sets(f"manifest={manifest}", f"output={tmp_path / 'stats'}"))
    assert done.exit_code == 0, done.stderr
    assert "- No clip has a text: SFT and the evaluation need some that have" in done.stdout
    assert "- There is no validation split." in done.stdout


def test_what_needs_a_reference_leaves_them_out(mixed, tagging, call, tmp_path):
    dataset = mixed[0] / "packed"
    split = PackedSplit(dataset, "raft")
    theirs, rows = tmp_path / "theirs.jsonl", ({"id": each, "reference": "", "prediction": ""} for each in split.index_of)
    theirs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    systems = json.dumps([{"name": "ours", "adapter": str(tagging)}, {"name": "theirs", "predictions": str(theirs)},
                          {"name": "chance", "yardstick": "chance"}])  # fmt: skip
    common = sets(f"dataset={dataset}", "split=raft", f"model.base={TINY_BASE}", "decode.max_new_tokens=8")
    evaluation = [*common, *sets(f"output={tmp_path / 'eval'}", f"systems={systems}", "bootstrap.samples=10",
                                 "bootstrap.permutations=199", "comparisons=[]", "gates.system=null")]  # fmt: skip
    for more in (["--dry-run"], []):
        done = call("eval", REPO / "configs/demo/eval-sft.yaml", *evaluation, *more)
        assert done.exit_code == 0, done.stderr
        assert f"6 of split raft; {BLANKED} more have no text" in done.stdout
    labelled = [example.id for example in split.labelled_examples()]
    for name in ("ours", "theirs", "chance"):
        assert [row["id"] for row in read(tmp_path / f"eval/predictions/{name}.jsonl")] == labelled
    plan = [*common, *sets(f"output={tmp_path / 'none'}", f"adapter={tagging}"), "--dry-run"]
    done = call("calibrate", REPO / "configs/demo/calibrate.yaml", *plan)
    assert f"6 of split raft; {BLANKED} more have no text" in done.stdout, done.stderr


@pytest.fixture(scope="module")
def raft(tagging, call, tmp_path_factory):
    """raft(step, name, dataset, …) -> the result of a step; its round is in raft.folder / name / round-1."""
    folder = tmp_path_factory.mktemp("raft")

    def raft(step, name, dataset, *more):
        config, changes = REPO / "configs/demo/raft.yaml", ["rounds=[{}]", "generate.candidates=2", "generate.max_new_tokens=12"]
        changes += [f"output={folder / name}", f"dataset={dataset}", f"adapter={tagging}", "split=raft", "audio_cache=off"]
        changes += ["train.epochs=1", "train.batch_size=12", "generate.greedy=false", "train.sampling=square_root", *CARD]
        return call("raft", step, config, *sets(*changes, *[each for each in more if "=" in each]),
                    *[each for each in more if "=" not in each])  # fmt: skip

    raft.folder = folder
    return raft


@pytest.fixture(scope="module")
def verifier(packed, tmp_path_factory):
    """A detector's file: for each clip of the split raft, the probability of three tags."""
    clips = PackedSplit(packed["deferred"], "raft").index_of
    path = tmp_path_factory.mktemp("verifier") / "probabilities.jsonl"
    rows = ({"id": clip, "tags": {"sighs": 0.9 - 0.07 * n, "laughs": 0.4, "sad": 0.05 * n}} for n, clip in enumerate(clips))
    path.write_text("".join(map(dump_row, rows)), "utf-8")
    return path


def test_raft_by_a_verifier_never_reads_a_text(mixed, packed, raft, verifier):
    """Candidates, scores, curated rows and the trained adapter are those of the labelled dataset, byte for byte."""
    by_verifier = ("score.profile=verifier", f"score.verifier={verifier}", "gate.measure=micro_f1")
    datasets = {"blanked": mixed[0] / "packed", "labelled": packed["deferred"]}
    for name, dataset in datasets.items():
        for step in ("generate", "score", "curate", "train"):
            done = raft(step, name, dataset, *by_verifier)
            assert done.exit_code == 0, done.stderr
    rounds = {name: raft.folder / name / "round-1" for name in datasets}
    for file in ("candidates/candidates.jsonl", "scores/scores.jsonl", "curated/curated.jsonl", "curated/dropped.jsonl",
                 "train/adapter/adapter_model.safetensors"):  # fmt: skip
        assert (rounds["blanked"] / file).read_bytes() == (rounds["labelled"] / file).read_bytes(), file
    assert len(read(rounds["blanked"] / "candidates/candidates.jsonl")) == 24
    # In a mixture each profile scores its own clips and loses its own lowest share; references are replayed from labelled clips.
    mixture = (f"score.verifier={verifier}", "curate.drop_lowest_share=0.2", "curate.reference_replay=1.0")
    for step in ("score", "curate"):
        done = raft(step, "blanked", datasets["blanked"], *mixture, "--overwrite")
        assert done.exit_code == 0, done.stderr
    assert "card 4, verifier 4; the lowest were dropped within each" in done.stdout
    labelled = {example.id for example in PackedSplit(datasets["blanked"], "raft").labelled_examples()}
    profiles = {(row["utterance_id"] in labelled, row["profile"]) for row in read(rounds["blanked"] / "scores/scores.jsonl")}
    assert profiles == {(True, "card"), (False, "verifier")}
    curated = read(rounds["blanked"] / "curated/curated.jsonl")
    assert {row["utterance_id"] for row in curated if row["candidate_id"] == REFERENCE} == labelled
    assert [sum((row["utterance_id"] in labelled) == each for row in curated[:8]) for each in (True, False)] == [4, 4]


def test_raft_refuses_before_anything_is_generated(mixed, raft):
    for step in ("run", "generate"):
        for more in (["--dry-run"], []):
            done = raft(step, "refused", mixed[0] / "packed", *more)
            assert done.exit_code == 2
            assert "score.verifier: 6 clips of split raft have no text, and profile card needs one" in done.stderr
    assert not (raft.folder / "refused").exists()


def test_recordings_are_cut_into_clips_without_text(call, tmp_path):
    noise = np.random.default_rng(0).standard_normal(16_000 * 3).astype(np.float32) * 0.1
    quiet = np.zeros(16_000 * 4, np.float32)
    (tmp_path / "talks").mkdir()
    soundfile.write(tmp_path / "talks/long.wav", np.concatenate([noise, quiet, noise, quiet, noise]), 16_000)
    soundfile.write(tmp_path / "talks/silent.wav", quiet, 16_000)
    (tmp_path / "talks/broken.wav").write_bytes(b"RIFF")
    (tmp_path / "talks/notes.txt").write_text("not audio")
    settings = sets(f"source.path={tmp_path / 'talks'}", f"output={tmp_path / 'imported'}")
    done = call("data", "import", REPO / "configs/import/recordings.yaml", *settings)
    assert done.exit_code == 0, done.stderr
    assert "5 = 3 imported + 2 rejected" in done.stdout
    assert "3, for RAFT alone" in done.stdout
    rows = read(tmp_path / "imported/manifest.jsonl")
    assert [(row["id"], row["split"], "text" in row) for row in rows] == [
        (f"long-{number:06d}", "raft", False) for number in (1, 2, 3)
    ]  # fmt: skip
    assert all(3.0 <= soundfile.info(tmp_path / "imported" / row["audio"]).duration <= 3.7 for row in rows)
    reasons = {row["file"].rsplit("/", 1)[1]: row["reason"] for row in read(tmp_path / "imported/rejected.jsonl")}
    assert reasons.keys() == {"broken.wav", "silent.wav"}
    assert reasons["silent.wav"] == "no sound in it: silence alone — leave it out"


def test_a_folder_without_transcripts_and_a_table_with_some(call, tmp_path):
    tone = 0.1 * np.sin(np.arange(16_000))
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", tone, 16_000)
    (tmp_path / "a.txt").write_text("[sighs] oh.")
    (tmp_path / "clips.csv").write_text("audio,text,part\na.wav,[sighs] oh.,\nb.wav,,\nc.wav,,test\n")

    def rows(*settings) -> list[tuple[str, str, str | None]]:
        output = f"output={tmp_path / 'imported'}"
        done = call("data", "import", REPO / "configs/import.yaml", *sets(*settings, output), "--overwrite")
        assert done.exit_code == 0, done.stderr
        found = read(tmp_path / "imported/manifest.jsonl")
        return [(row["audio"][-5:], row["split"], row.get("text")) for row in found]

    folder, table = ["source.kind=folder", f"source.path={tmp_path}"], [f"source.path={tmp_path / 'clips.csv'}"]
    oh = ("a.wav", "train", "[sighs] oh.")
    dealt = "deal.shares={train: 1.0, validation: 0.0, test: 0.0}"
    assert rows(*folder, dealt, "transcript.missing=raft") == [oh, ("b.wav", "raft", None), ("c.wav", "raft", None)]
    assert {row[1:] for row in rows(*folder, "columns.text=null")} == {("raft", None)}
    assert rows(*table, dealt) == [oh]
    assert "keep such clips for RAFT alone" in read(tmp_path / "imported/rejected.jsonl")[0]["reason"]
    assert rows(*table, dealt, "transcript.missing=raft", "columns.split=part") == [oh, ("b.wav", "raft", None)]
    assert "in split test — write the transcript, or use split raft" in read(tmp_path / "imported/rejected.jsonl")[0]["reason"]
