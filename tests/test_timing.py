"""The `aligned` target: what is written when, literally, and that decoding and training agree on it."""

import json

import numpy as np
import pytest
import torch

from conftest import CARD_SETS, TINY_BASE, load_tiny
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.evaluation import Bootstrap
from evoxtral_train.config.sections import Placement, Tracking
from evoxtral_train.data.manifest import ManifestRow, read_manifest
from evoxtral_train.data.timing import timed_target
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import RowError
from evoxtral_train.families.base import encode_piece
from evoxtral_train.families.realtime.emission import written_tags
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.raft.reward import Answer, score, weights_of
from evoxtral_train.records import GREEDY, Candidate, Prediction, read_rows
from evoxtral_train.runs import Options
from evoxtral_train.scoring.metrics import evaluate
from evoxtral_train.stages.data import pack
from evoxtral_train.training.dataset import TrainingSet
from evoxtral_train.units import TOKEN_S


def row(text: str, words=(), events=()) -> ManifestRow:
    return ManifestRow(
        "a", TINY_BASE, text, "train", 1,
        words=[{"word": word, "start_s": start, "end_s": end} for word, start, end in words],
        events=[{"tag": tag, "start_s": start, "end_s": end} for tag, start, end in events],
    )  # fmt: skip


WHISPER = row(
    "[whispers] come closer. [laughs]",
    words=[("come", 0.2, 0.5), ("closer", 0.5, 1.0)],
    events=[("whispers", 0.2, 1.0), ("laughs", 1.2, 1.9)],
)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tags", [("[whispers]", 1.0), ("[laughs]", 1.9)]),
        ("text", [("come", 0.5), ("closer.", 1.0)]),
        ("tagged_text", [("[whispers]", 0.5), ("come", 0.5), ("closer.", 1.0), ("[laughs]", 1.9)]),
    ],
)
def test_each_piece_at_the_time_it_has_been_heard(target, expected):
    assert timed_target(WHISPER, target) == expected


def test_tags_are_written_in_the_order_in_which_they_end():
    excited = row("[excited] [laughs] yes!", [("yes", 1.0, 1.4)], [("excited", 1.0, 1.4), ("laughs", 0.1, 0.8)])
    assert timed_target(excited, "tags") == [("[laughs]", 0.8), ("[excited]", 1.4)]
    # among words the order is the text's, so the laugh waits for the tag before it
    assert timed_target(excited, "tagged_text") == [("[excited]", 1.4), ("[laughs]", 1.4), ("yes!", 1.4)]


def test_the_same_tag_twice_and_a_mark_that_stands_alone():
    twice = row(
        "[pause] oh - [pause] no", [("oh", 1.0, 1.2), ("no", 2.4, 2.6)], [("pause", 1.2, 2.4), ("pause", 0.0, 1.0)]
    )  # fmt: skip
    assert timed_target(twice, "tagged_text") == [("[pause]", 1.0), ("oh -", 1.2), ("[pause]", 2.4), ("no", 2.6)]


@pytest.mark.parametrize(
    ("bad", "target", "message"),
    [
        (row("come closer", [("come", 0, 1)]), "text", "time of every word: the text has 2, `words` has 1 — give each word"),
        (row("[laughs] come"), "tags", r"the text has \[laughs\] 1 times, `events` 0 times"),
        (row("come", [("come", 0, 1)], [("sighs", 0, 1)]), "tagged_text", r"the text has \[sighs\] 0 times, `events` 1 times"),
        (row("come", [("come", 2, 1)]), "text", "bad times of a word or event"),
        (row("[sighs]", (), [("sighs", None, 1)]), "tags", "bad times of a word or event"),
    ],
)
def test_missing_or_bad_times_are_reported(bad, target, message):
    with pytest.raises(RowError, match=message):
        timed_target(bad, target)


@pytest.fixture(scope="module", params=["tags", "text", "tagged_text"])
def aligned(request, spoken, tmp_path_factory) -> PackedSplit:
    folder = tmp_path_factory.mktemp("aligned") / request.param
    config = PackConfig(
        manifest=spoken / "manifest.jsonl", output=folder, base=str(TINY_BASE), layout=Layout(kind="aligned"),
        target=request.param, tracking=Tracking(mode="disabled"),
    )  # fmt: skip
    pack.run(config, Options())
    return PackedSplit(folder, "train")


def test_a_packed_row_writes_every_piece_when_it_is_due(aligned, spoken, clock, tag_rules, family):
    tokenizer = family.tokenizer
    rows = {each.id: each for each in read_manifest(spoken / "manifest.jsonl", tag_rules)[0]}
    assert len(aligned) == 12, "no row is lost"
    for index, example in enumerate(aligned.examples):
        pieces = timed_target(rows[example.id], aligned.target)
        laid_out = aligned.layout.lay_out(aligned.clip(index), example.target_ids)
        assert laid_out.prompt_tokens == 39
        position = 39
        for text, heard_s in pieces:
            ids = encode_piece(tokenizer, text)
            while laid_out.ids[position] in (clock.streaming_pad_id, clock.streaming_word_id):
                position += 1
            assert laid_out.ids[position : position + len(ids)] == ids, (text, position)
            heard_tokens = int(np.ceil(round(heard_s * 1000) / (TOKEN_S * 1000)))  # times count to the millisecond
            assert position > clock.written_at(heard_tokens), "a [STREAMING_WORD] first, and that not before it was heard"
            position += len(ids)
        assert tokenizer.decode(example.target_ids).strip() == " ".join(text for text, _ in pieces)
        assert laid_out.needed_tokens > clock.written_at(example.utterance_tokens), "the whole clip is heard before EOS"


def test_a_tag_is_written_when_its_last_token_is(clock, family):
    tokenizer = family.tokenizer
    sighs, come, laughs = (encode_piece(tokenizer, text) for text in ("[sighs]", "come", "[clears throat]"))
    p, w = clock.streaming_pad_id, clock.streaming_word_id
    ids = [p, p, w, *sighs, *come, p, w, *laughs]
    start, end = 39 + 3, 39 + len(ids)
    # the [STREAMING_WORD] before a group stands 6 tokens of delay after what the group speaks of
    places = [(start - 1 - 6 - 32) * 0.08, (end - len(laughs) - 1 - 6 - 32) * 0.08]
    ends = [(start + len(sighs) - 1 - 32) * 0.08, (end - 1 - 32) * 0.08]
    assert written_tags(clock, tokenizer, 39, ids) == [
        {"tag": "sighs", "at_s": pytest.approx(places[0]), "written_s": pytest.approx(ends[0])},
        {"tag": "clears throat", "at_s": pytest.approx(places[1]), "written_s": pytest.approx(ends[1])},
    ]
    assert written_tags(clock, tokenizer, 39, [p, w, *sighs[:-1], p]) == [], "a tag that was never closed"


def test_the_target_itself_is_in_its_place_after_the_delay(aligned, clock, family):
    """What the rows teach: each tag speaks of its event's end, later only while another tag is being written, and
    is complete after the delay and the time that writing takes."""
    if aligned.target != "tags":
        pytest.skip("words take time to write, too")
    rows = []
    for example in aligned.examples:
        written = written_tags(clock, family.tokenizer, 39, example.target_ids)
        rows.append(Prediction(example.id, example.text, example.target_text, example.events, written))
    report = evaluate(rows, with_words=False, bootstrap=Bootstrap(samples=10), placement=Placement(tolerance_s=0.5))["placed"]
    assert report["unit"] == "s"
    assert report["micro"]["f1"]["value"] == 1
    assert report["latency_s"]["tags"] == sum(len(example.events) for example in aligned.examples)
    # the delay of 0.48 s, up to 0.08 s of rounding, [STREAMING_WORD] and 3 to 7 subwords of 0.08 s
    assert 0.48 + 3 * 0.08 <= report["latency_s"]["median"] <= report["latency_s"]["p90"] <= 0.48 + 12 * 0.08


def test_decoding_may_write_until_the_clip_has_been_heard_and_the_room_after_it(aligned, clock, network):
    requests = list(requests_of(aligned))
    wanted = Decoding(1, Sampling(), max_new_tokens=8, batch_tokens=4000)
    found = {
        each.utterance_id: each for batch in decode(network, LiveAudio(network, aligned), requests, wanted) for each in batch
    }
    for request, example in zip(requests, aligned.examples, strict=True):
        assert request.prompt == [1] + [32] * 38
        written = found[example.id]
        limit = clock.written_at(example.utterance_tokens) + 8 - 39
        assert len(written.token_ids) == limit if written.finish_reason == "length" else len(written.token_ids) < limit


def test_the_weight_of_the_pads(aligned, clock, network):
    """Weighted = a mean over labels by hand; weight 1 = the plain loss; through the cache and the tower."""
    system = load_tiny().model
    batch = network.collate([TrainingSet(aligned)[index] for index in range(4)])
    weighted = TrainingSet(aligned, pad_weight=0.25)
    heavy = network.collate([weighted[index] for index in range(4)])
    with torch.inference_mode():
        plain = system(**batch)
        found = system(**heavy)["loss"]
        cached = {key: value for key, value in heavy.items() if key != "input_features"}
        audio = network.audio_embeddings(heavy["input_features"], heavy["input_ids"].shape[1])
        again = system(**cached, audio_embeds=audio)["loss"]
        losses = torch.nn.functional.cross_entropy(
            plain.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
        )
    labels = batch["labels"][:, 1:].flatten()
    weights = torch.where(labels == -100, 0.0, torch.where(labels == clock.streaming_pad_id, 0.25, 1.0))
    torch.testing.assert_close(found, (losses * weights).sum() / weights.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(again, found, rtol=1e-6, atol=0)
    assert (labels == clock.streaming_pad_id).sum() > 20, "there are pads to learn"
    total = sum(float(weighted[index]["label_weights"].sum()) for index in range(len(weighted)))
    assert weighted.label_weight == pytest.approx(total)
    torch.testing.assert_close(plain.loss, losses.sum() / (labels != -100).sum(), rtol=1e-5, atol=0)


TARGETS = ["tags", *(pytest.param(target, marks=pytest.mark.slow) for target in ("text", "tagged_text"))]


@pytest.mark.parametrize("aligned", TARGETS, indirect=True)
def test_sft_and_raft_run_on_aligned_rows(aligned, call, tmp_path):
    """RAFT trains on the candidate's own tokens, pads and all."""
    if aligned.target == "text":
        pytest.skip("two targets are enough")
    common = ("--set", f"dataset={aligned.folder}", "--set", "tracking.mode=disabled", "--set", "train.pad_weight=0.5")
    sft = call("sft", "configs/demo/sft.yaml", *common, "--set", f"output={tmp_path}/sft", "--set", "train.epochs=1",
               "--set", "train.batch_size=4", "--set", "train.warmup_steps=1")  # fmt: skip
    assert sft.exit_code == 0, sft.stderr
    raft = call("raft", "run", "configs/demo/raft.yaml", *CARD_SETS, *common, "--set", f"output={tmp_path}/raft", "--set",
                f"adapter={tmp_path}/sft", "--set", "generate.max_new_tokens=20", "--set", "train.batch_size=4", "--set",
                "score.profile=counts", "--set", "score.placement.tolerance_s=0.5", "--set", "score.placement.tolerance_words=0",
                "--set", "curate.reference_replay=0.5", "--set", "curate.seed=3", "--set", "split=train",
                "--set", "rounds=[{}]")  # fmt: skip
    assert raft.exit_code == 0, raft.stderr
    measured = {step: json.loads((tmp_path / "raft/round-1" / step / "metrics.json").read_text("utf-8"))
                for step in ("scores", "curated", "train")}  # fmt: skip
    assert (measured["curated"]["curated"], measured["curated"]["replayed"]) == (10, 5)
    assert measured["train"]["train_rows"] == 15
    assert {"extra_tags", "missing_tags", "misplaced_tags", "tag_f1"} <= set(measured["scores"]["components"])
    greedy = read_rows(tmp_path / "raft/round-1/candidates/greedy.jsonl", Candidate)
    assert [(each.utterance_id, each.candidate_id) for each in greedy] == [(each.id, GREEDY) for each in aligned.examples]
    examples, weights = {each.id: each for each in aligned.examples}, weights_of("counts", aligned.target)
    placement = Placement(tolerance_s=0.5, tolerance_words=0)
    rewards = []
    for row in greedy:
        example = examples[row.utterance_id]
        answer = Answer(example.text, row.text, aligned.target != "tags", example.events, row.written, placement)
        rewards.append(score(weights, answer)[0])
    assert measured["scores"]["mean_greedy_reward"] == pytest.approx(np.mean(rewards))
    judged = call("eval", "configs/demo/eval-sft.yaml", *common[:-2], "--set", f"output={tmp_path}/eval", "--set",
                  f"systems=[{{name: SFT, adapter: {tmp_path}/sft}}]", "--set", "placement.tolerance_s=0.7", "--set",
                  "placement.tolerance_words=2")  # fmt: skip
    assert judged.exit_code == 0, judged.stderr
    placed = json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))["systems"]["SFT"]["placed"]
    assert (placed["unit"], placed["tolerance"]) == ("s", 0.7)
    [prediction, *_] = read_rows(tmp_path / "eval/predictions/SFT.jsonl", Prediction)
    assert prediction.events is not None
    assert prediction.written is not None
