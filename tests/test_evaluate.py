"""`eval` on the small demo: any systems in one run, filters, gates, the page; and `compare` across runs."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from conftest import REPO, TINY_BASE
from evoxtral_train.config.evaluation import Bootstrap, Gates, System
from evoxtral_train.config.sections import Placement
from evoxtral_train.data.audio import encode_flac
from evoxtral_train.decoding.confidences import tag_confidences
from evoxtral_train.records import Prediction, read_rows
from evoxtral_train.reporting.evaluation import page
from evoxtral_train.reporting.marks import marked
from evoxtral_train.reporting.results import Evaluation, Training, drawn_clips
from evoxtral_train.reporting.text import last_lines, markdown
from evoxtral_train.scoring.calibration import filter_curves, filtered, reliability
from evoxtral_train.scoring.gates import failed_gates
from evoxtral_train.scoring.significance import compare_pairs, declared
from evoxtral_train.scoring.summary import summarize
from evoxtral_train.scoring.tag_filter import TagFilter
from evoxtral_train.text.tags import find_tags
from evoxtral_train.text.taxonomy import Taxonomy


@pytest.fixture
def evaluate(demo, call, tmp_path):
    """evoxtral eval with the demo's config and other systems, into tmp_path/eval."""

    def evaluate(systems: str, *overrides, options=()):
        runs = demo / "runs"
        sets = [f"systems={systems.replace('RUNS', str(runs))}", f"output={tmp_path / 'eval'}", "tracking.mode=disabled"]
        sets += ["bootstrap.permutations=199", "clips_shown=2", *overrides]
        return call("eval", demo / "configs/eval-sft.yaml", *(part for each in sets for part in ("--set", each)), *options)

    return evaluate


def metrics(tmp_path) -> dict:
    return json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))


def test_base_adapters_filters_and_a_file_in_one_run(evaluate, demo, tmp_path):
    given = read_rows(demo / "runs/eval-sft/predictions/SFT.jsonl", Prediction)
    path = tmp_path / "mine.jsonl"
    mine = [{"id": row.id, "reference": row.reference, "prediction": "[pause]", "confidences": [0.4]} for row in given]
    path.write_text("".join(json.dumps(row) + "\n" for row in mine), "utf-8")
    result = evaluate(
        "[{name: base}, {name: SFT, adapter: RUNS/sft}, {name: sure, adapter: RUNS/sft, min_confidence: 0.5}, "
        f"{{name: surest, adapter: RUNS/sft, top_k: 1, top_k_by: confidence}}, {{name: mine, predictions: {path}}}]"
    )
    assert result.exit_code == 0, result.stderr
    systems = metrics(tmp_path)["systems"]
    assert list(systems) == ["base", "SFT", "sure", "surest", "mine"]
    rows = {name: read_rows(tmp_path / f"eval/predictions/{name}.jsonl", Prediction) for name in systems}
    assert [row.prediction for row in rows["mine"]] == ["[pause]"] * 10
    for whole, sure, surest in zip(rows["SFT"], rows["sure"], rows["surest"], strict=True):
        assert len(whole.confidences) == len(find_tags(whole.prediction))
        assert sure.confidences == [each for each in whole.confidences if each >= 0.5]
        assert len(sure.confidences) == len(find_tags(sure.prediction))
        assert surest.confidences == ([max(whole.confidences)] if whole.confidences else [])
    assert metrics(tmp_path)["comparisons"][-1]["after"] == "mine"
    assert "- mine against " in (tmp_path / "eval/table.md").read_text("utf-8")
    assert result.stdout.endswith(f"Open in a browser: {tmp_path}/eval/report.html\n")
    assert systems["mine"]["calibration"]["reliability"]["tags"] == 10
    page = (tmp_path / "eval/report.html").read_text("utf-8")
    for title in ("Systems", "Differences", "Confusion", "Confidence", "Loss", "Worst clips of mine", "Best clips of mine"):
        assert f"<h2>{title}</h2>" in page, title
    assert page.count("<audio") == 3 + 4
    assert {"confusion-mine.png", "reliability.png", "loss.png"} <= {path.name for path in (tmp_path / "eval").glob("*.png")}


def test_a_file_must_hold_the_splits_clips(evaluate, demo, tmp_path):
    given = read_rows(demo / "runs/eval-sft/predictions/SFT.jsonl", Prediction)
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"id": row.id, "reference": "", "prediction": ""}) + "\n" for row in given]
    path.write_text("".join([*lines[1:], lines[1], '{"id": "other", "reference": "", "prediction": ""}\n']), "utf-8")
    result = evaluate(f"[{{name: mine, predictions: {path}}}]")
    assert result.exit_code == 2
    assert (
        f"does not contain the clips of test: 1 missing, 1 unknown, 1 twice, the first missing is {given[0].id!r}"
        in result.stderr
    )
    path.write_text("".join(lines), "utf-8")
    result = evaluate(f"[{{name: mine, predictions: {path}, min_confidence: 0.5}}]")
    assert result.exit_code == 2
    assert "system mine: these predictions have no confidences" in result.stderr


def test_a_confident_gate_is_not_passed_by_a_handful_of_clips():
    """Four untagged clips without a false tag: the rate may still be 0.92 (Poisson's bound)."""
    rows = [Prediction(str(number), "hello", "") for number in range(4)]
    report = summarize(rows, False, Taxonomy.load(REPO / "data/tags.yaml"), Bootstrap(samples=50), Placement())
    gates = Gates(system="SFT", confident=True, false_tags_per_untagged_clip_max=0.01)
    assert failed_gates(gates, {"SFT": report}) == [
        "gate false_tags_per_untagged_clip_max of SFT: 0.9222, but must be at most 0.01"
    ]


def test_a_gate_that_is_not_passed_is_exit_code_3_and_named(evaluate, tmp_path):
    systems = "[{name: base}, {name: SFT, adapter: RUNS/sft}]"
    result = evaluate(systems, "gates.system=SFT", "gates.micro_f1_min=0.99", "gates.false_tags_per_untagged_clip_max=99")
    assert result.exit_code == 3, result.stderr
    value = metrics(tmp_path)["systems"]["SFT"]["micro"]["f1"]["value"]
    said = f"gate micro_f1_min of SFT: {value:.4f}, but must be at least 0.99"
    assert said in result.stdout
    assert metrics(tmp_path)["gates_not_passed"] == [said]
    assert said in (tmp_path / "eval/report.html").read_text("utf-8")
    assert (tmp_path / "eval/complete.json").is_file(), "everything is written first"
    passed = evaluate(systems, "gates.system=SFT", "gates.micro_f1_min=0.0", options=("--overwrite",))
    assert passed.exit_code == 0
    for override, reason in (("gates.micro_f1_min=0.5", "set gates.system"), ("gates.system=RAFT", "is none of the systems")):
        result = evaluate(systems, override, options=("--overwrite",))
        assert result.exit_code == 2
        assert reason in result.stderr


def test_gates_by_hand():
    report = {
        "micro": {"f1": {"value": 0.7, "low": 0.6, "high": 0.8}, "hallucination": {"value": None, "low": None, "high": None}},
        "wer": {"micro": {"value": 0.12, "low": 0.1, "high": 0.15}},
    }
    rise = {"value": 0.02, "low": 0.0, "high": 0.04}

    def failed(**limits):
        return [each.split(":")[0] for each in failed_gates(Gates(system="SFT", **limits), {"SFT": report}, rise)]

    assert failed(micro_f1_min=0.7, wer_max=0.12, wer_regression_max=0.021) == []
    assert failed(micro_f1_min=0.71, wer_max=0.11, wer_regression_max=0.01) == [
        "gate micro_f1_min of SFT", "gate wer_max of SFT", "gate wer_regression_max of SFT",
    ]  # fmt: skip
    assert failed(micro_f1_min=0.65, confident=True) == ["gate micro_f1_min of SFT"]
    assert failed(wer_max=0.14, confident=True) == ["gate wer_max of SFT"]
    assert failed(wer_regression_max=0.03) == []
    assert failed(wer_regression_max=0.03, confident=True) == ["gate wer_regression_max of SFT"]
    assert failed(micro_hallucination_max=0.5) == ["gate micro_hallucination_max of SFT"], "what was not measured does not pass"


@pytest.mark.parametrize("layout", ["deferred", "packed"])
def test_where_the_target_has_words_the_base_is_measured_too(layout, spoken, call, tmp_path):
    def sets(*overrides):
        return [part for each in (*overrides, "tracking.mode=disabled") for part in ("--set", each)]

    packed = tmp_path / "packed"
    result = call("data", "pack", REPO / "configs/demo/pack.yaml", *sets(
        f"manifest={spoken}/manifest.jsonl", f"output={packed}", "target=tagged_text", f"layout.kind={layout}"))  # fmt: skip
    assert result.exit_code == 0, result.stderr
    given = tmp_path / "mine.jsonl"
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    rows = [{"id": row["id"], "reference": row["text"], "prediction": row["text"]} for row in rows if row["split"] == "test"]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = call("eval", REPO / "configs/demo/eval-sft.yaml", *sets(
        f"dataset={packed}", f"output={tmp_path / 'eval'}", f"systems=[{{name: mine, predictions: {given}}}]",
        "gates.system=mine", "gates.wer_regression_max=0.0", f"model.base={TINY_BASE}"))  # fmt: skip
    assert result.exit_code == 0, result.stderr
    systems = metrics(tmp_path)["systems"]
    assert list(systems) == ["base", "mine"]
    assert systems["mine"]["wer"]["micro"]["value"] == 0.0
    assert 0.0 <= systems["base"]["wer"]["micro"]["value"] < 0.15, "the base writes in the form that it was trained in"
    for override, said in (
        (f"systems=[{{name: base, predictions: {given}}}]", "systems: the name 'base' is reserved for the base model"),
        ("gates.baseline=other", "gates.baseline: 'other' is not one of the systems: base, mine"),
    ):
        result = call("eval", REPO / "configs/demo/eval-sft.yaml", *sets(
            f"dataset={packed}", f"output={tmp_path / 'refused'}", f"systems=[{{name: mine, predictions: {given}}}]",
            f"model.base={TINY_BASE}", *(["gates.system=mine", "gates.wer_regression_max=0.0"] if "gates" in override else []),
            override))  # fmt: skip
        assert result.exit_code == 2
        assert said in result.stderr
        assert not (tmp_path / "refused").exists()


def test_confidence_is_the_probability_of_a_tags_tokens(family):
    tokenizer = family.tokenizer
    text = "[laughs] [clears throat] oh"
    ids = tokenizer.encode(text, bos=False, eos=False)
    found = tag_confidences(tokenizer, ids, [math.log(0.5)] * len(ids))
    pieces = [tokenizer.decode([token]) for token in ids]
    ends = [sum(map(len, pieces[: place + 1])) for place in range(len(ids))]
    spans = [(text.index("[l"), text.index("s]") + 2), (text.index("[c"), text.index("t]") + 2)]
    tokens = [sum(1 for at, end in enumerate(ends) if end > first and end - len(pieces[at]) < last) for first, last in spans]
    assert found == [round(0.5**count, 4) for count in tokens]
    assert tag_confidences(tokenizer, [], []) == []
    sure = tag_confidences(tokenizer, ids, [0.0] * len(ids))
    assert sure == [1.0, 1.0]


def rows(*parts) -> list[Prediction]:
    return [Prediction(str(index), *part[:2], confidences=part[2]) for index, part in enumerate(parts)]


def test_filters_by_hand():
    [row] = rows(("[sighs] a [pause] b", "[laughs] a [sighs] b [pause]", [0.2, 0.9, 0.5]))
    assert filtered(row, TagFilter(top_k=2)).prediction == "[laughs] a [sighs] b"
    assert filtered(row, TagFilter(top_k=2, top_k_by="confidence")).prediction == "a [sighs] b [pause]"
    assert filtered(row, TagFilter(top_k=2, top_k_by="confidence")).confidences == [0.9, 0.5]
    assert filtered(row, TagFilter(min_confidence=0.5)).prediction == "a [sighs] b [pause]"
    assert filtered(row, TagFilter(top_k=1, top_k_by="confidence", min_confidence=0.95)).prediction == "a b"
    assert filtered(row, TagFilter()) is row
    with pytest.raises(ValueError, match="no confidences"):
        filtered(Prediction("x", "", "[sighs]"), TagFilter(min_confidence=0.1))


def test_reliability_and_curves_by_hand():
    found = rows(("[sighs] [pause]", "[sighs] [sighs]", [0.95, 0.15]), ("a", "[calm]", [0.85]), ("[laughs]", "[laughs]", [1.0]))
    report = reliability(found)
    assert [(each["from"], each["tags"], each["confidence"], each["right"]) for each in report["bins"]] == [
        (0.1, 1, 0.15, 0.0), (0.8, 1, 0.85, 0.0), (0.9, 2, 0.975, 1.0),
    ]  # fmt: skip
    assert report["expected_error"] == pytest.approx((0.15 + 0.85 + 2 * 0.025) / 4)
    curves = filter_curves(found)
    assert [(each["setting"], each["precision"], each["recall"]) for each in curves["least confidence"]] == [
        (0.15, 2 / 4, 2 / 3), (0.85, 2 / 3, 2 / 3), (0.95, 1.0, 2 / 3), (1.0, 1.0, 1 / 3),
    ]  # fmt: skip
    assert [(each["setting"], each["precision"]) for each in curves["top-k by order"]] == [(2, 2 / 4), (1, 2 / 3)]
    assert reliability([])["expected_error"] is None


def test_marks():
    reference, prediction = marked("[sighs] I told you. [pause]", "[laughs] [sighs] i sold you", with_words=True)
    assert reference.stretches == [
        ("[sighs]", "same"),
        ("I", "same"),
        ("told", "missed"),
        ("you.", "same"),
        ("[pause]", "missed"),
    ]
    assert prediction.stretches == [("[laughs]", "false"), ("[sighs]", "same"), ("i", "same"), ("sold", "false"), ("you", "same")]
    reference, prediction = marked("[sighs] I told you.", "[pause]", with_words=False)
    assert reference.stretches == [("[sighs]", "missed"), ("I", "same"), ("told", "same"), ("you.", "same")]
    assert prediction.stretches == [("[pause]", "false")]


@pytest.fixture(scope="module")
def whole() -> Evaluation:
    """An evaluation in which there is everything: 60 clips with events and confidences, two systems, one of them also with
    a filter, a yardstick, trainings, audio."""
    random = np.random.default_rng(0)
    references, right, guessed = [], [], []
    for number in range(60):
        tags = [str(tag) for tag in random.choice(["sighs", "laughs", "pause"], size=number % 3)]
        events = [{"tag": tag, "start_s": 0.7 * place + random.random(), "end_s": 3.0} for place, tag in enumerate(tags)]
        references.append((f"clip-{number}", " ".join(f"[{tag}] word" for tag in tags) or "word", events))
        sure = random.random(len(tags)).tolist()
        right.append(Prediction(*references[-1][:2], " ".join(f"[{tag}]" for tag in tags), events, None, sure))
        wrong = ["gasps" if random.random() < 0.4 else tag for tag in tags]
        guessed.append(Prediction(*references[-1][:2], " ".join(f"[{tag}]" for tag in wrong), events, None, sure))
    rows = {"guess": guessed, "right": right, "right top-1": [filtered(row, TagFilter(top_k=1)) for row in right]}
    rows["chance"] = [Prediction(*reference[:2], "[sighs]", reference[2]) for reference in references]
    taxonomy, wanted = Taxonomy.load(REPO / "data/tags.yaml"), Bootstrap(samples=100)
    reports = {name: summarize(each, False, taxonomy, wanted, Placement()) for name, each in rows.items()}
    training = Training(
        {"right": [(step, 1 / step) for step in range(1, 9)]}, {"round-1": [0.1, 0.5, 0.6], "round-2": [0.5, 0.6]}
    )
    tone = encode_flac(0.1 * np.sin(np.arange(16_000) / 8).astype(np.float32))
    systems = [
        System(name="guess", adapter="guess"), System(name="right", adapter="right"),
        System(name="right top-1", adapter="right", top_k=1), System(name="chance", yardstick="chance"),
    ]  # fmt: skip
    comparisons = compare_pairs(declared(systems), rows, False, Bootstrap(permutations=199))
    return Evaluation("All <of> it", "here", systems, reports, rows, comparisons, [], False, training, lambda identity: tone, 2)


def test_the_page_leads_with_clips_a_picture_and_a_short_table(whole):
    html = page(whole)[0]
    assert re.findall("<h2>(.*?)</h2>", html) == [
        "Said and written", "How well each tag is heard", "Systems", "Details",
        "All measures", "Differences", "Tag by tag", "Confusion", "Recall by time", "Confidence", "Loss", "Rewards",
        "Worst clips of right", "Best clips of right",
    ]  # fmt: skip
    first_screen, details = html.split("<h2>Details</h2>")
    assert (first_screen.count("<audio"), first_screen.count("<img"), first_screen.count("<table")) == (3, 1, 1)
    assert (first_screen.count("<details"), details.count("<details")) == (0, 10)
    assert html.count("<audio") == 3 + 4
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", html), "nothing is loaded from elsewhere"
    assert "All &lt;of&gt; it" in html


def test_a_transcript_cannot_become_markup(whole):
    bad = "<img src=x onerror=alert(1)>"
    rows = [Prediction("<b>", f"[sighs] {bad}", f"[{bad}] [sighs]")]
    report = summarize(rows, False, Taxonomy.load(REPO / "data/tags.yaml"), Bootstrap(samples=10), Placement())
    html = page(
        Evaluation("", "", [System(name="a")], {"a": report}, {"a": rows}, [], [bad], False, Training(), lambda identity: None, 1)
    )[0]
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x") >= 3
    assert "<h3>&lt;b&gt;</h3>" in html


def test_the_last_lines_are_those_that_matter(whole, tmp_path):
    lines = last_lines(whole, [tmp_path / "c.md", tmp_path / "c.json", tmp_path / "c.html"]).splitlines()
    assert lines[0] == "said → written by right (3 of 40 tagged clips, one per tag, drawn by hash)"
    drawn = drawn_clips(whole)
    assert lines[1:7] == [line for row in drawn for line in (f"  {row.reference}", f"  → {row.prediction}")]
    assert lines[8].split() == ["system", "micro", "F1", "precision", "recall", "false", "tags"]
    assert [line.split()[0] for line in lines[9:12]] == ["guess", "right", "chance"], "a filter is in its sentence"
    exact = ["[0.91–1.00]", "[0.00–0.18]"]  # bounds of 40 tagged clips that are all right, and of 20 untagged ones
    assert lines[10].split() == ["right", "1.00", exact[0], "1.00", exact[0], "1.00", exact[0], "0.00", exact[1]]
    assert lines[12] == "95% intervals over clips. False tags: mean per untagged clip (n = 20)."
    text = " ".join(lines[13:])
    assert "right against guess: " in text
    assert "right top-1 against right: " in text
    assert text.count(" against ") == len(whole.comparisons) == 2
    assert lines[-2:] == [f"All measures: {tmp_path}/c.md, {tmp_path}/c.json", f"Open in a browser: {tmp_path}/c.html"]
    assert max(map(len, lines[:-2])) <= 80
    assert len(lines) < 26
    assert "`--output NAME` writes" in last_lines(whole, [])


def test_the_clips_are_drawn_by_their_ids_alone(whole):
    drawn = [row.id for row in drawn_clips(whole)]
    assert len(drawn) == 3
    assert {find_tags(row.reference)[0] for row in drawn_clips(whole)} == {"sighs", "laughs", "pause"}, "a tag is shown once"
    others = {"reports": {"guess": whole.reports["guess"]}, "rows": {"guess": whole.rows["guess"][::-1]}}
    assert [row.id for row in drawn_clips(replace(whole, **others))] == drawn, "whatever the system or the order"
    untagged = [row for row in whole.rows["right"] if not find_tags(row.reference)]
    assert len(drawn_clips(replace(whole, rows=whole.rows | {"right": untagged}))) == 3


def test_the_final_system_wrote_something(whole):
    assert (whole.leading, whole.final) == (["guess", "right"], "right")
    silent = whole.reports | {"right": whole.reports["right"] | {"predicted_tags": 0}}
    assert replace(whole, reports=silent).final == "guess"
    assert replace(whole, reports={"chance": whole.reports["chance"]}).final == "chance"


def test_words_are_measured_and_cut_to_two_lines(whole):
    """Emphasis by its micro F1, with how many words it is from; WER in the short table; long transcripts in two lines each."""
    said = " ".join(["well"] * 60)
    rows = [Prediction("a", f"[sighs] NO, {said}", f"[sighs] NO, {said}"), Prediction("b", "STOP it", "stop it")]
    report = summarize(rows, True, Taxonomy.load(REPO / "data/tags.yaml"), Bootstrap(samples=10), Placement())
    found = replace(whole, reports={"a": report}, rows={"a": rows}, comparisons=[], with_words=True)
    lines = last_lines(found, []).splitlines()
    assert lines[0] == "said → written by a (2 clips, drawn by hash)"
    assert [line[:4] for line in lines[1:7]] == ["  [s", "  we", "  → ", "    ", "  ST", "  → "]
    assert lines[2].endswith("…")
    assert lines[8].split()[-1] == "WER"
    assert "\n| emphasis F1 (2 words) | 0.667" in markdown(found)


def test_the_markdown_holds_every_measure(whole):
    text = markdown(whole)
    assert "| measure | guess | right | right top-1 | chance |" in text
    for measure in ("micro F1", "macro recall", "card hallucination", "false tags per untagged clip", "tags per clip"):
        assert f"\n| {measure} | " in text, measure
    assert "\n| right top-1 | " not in text
    assert "| WER |" not in text, "they write no words"


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_plays_its_audio_without_errors(whole, tmp_path):
    """The page is opened with a script that plays the first clip and writes what came of it into the title."""
    probe = """<script>
      addEventListener("error", event => document.title += " ERROR " + event.message);
      const audio = document.querySelector("audio");
      audio.muted = true;
      audio.play().then(() => document.title += " PLAYS " + audio.duration, error => document.title += " REFUSED " + error);
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(page(whole)[0].replace("</body>", probe), "utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--dump-dom",
         "--virtual-time-budget=4000", "--enable-logging=stderr", f"file://{path}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert re.search(r"<title>(.*?)</title>", done.stdout).group(1) == "All &lt;of&gt; it PLAYS 1"


def test_the_demo_ends_with_a_page_that_plays(demo):
    html = (demo / "runs/comparison.html").read_text("utf-8")
    assert html.count("<audio") > 0
    assert "<h2>Loss</h2>" in html
    assert "<h2>Rewards</h2>" in html


def test_the_same_page_without_the_dataset_has_no_audio(demo, call, tmp_path):
    for name in ("eval-sft", "eval-raft"):
        shutil.copytree(demo / "runs" / name, tmp_path / name, ignore=shutil.ignore_patterns("wandb"))
        path = tmp_path / name / "config.yaml"
        path.write_text(path.read_text("utf-8").replace(f"dataset: {demo}/runs/packed", "dataset: none"), "utf-8")
    result = call("compare", tmp_path / "eval-sft", tmp_path / "eval-raft", "--output", tmp_path / "both")
    assert result.exit_code == 0, result.stderr
    assert "<audio" not in (tmp_path / "both.html").read_text("utf-8")
    assert list(json.loads((tmp_path / "both.json").read_text("utf-8"))["systems"]) == ["chance", "probe", "SFT", "RAFT"]
