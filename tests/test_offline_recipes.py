"""The recipes of the offline family: what they train, and that they are the published ones."""

import json
import re

import pytest

from conftest import REPO, TINY_OFFLINE_BASE, rows_of
from corpora import librispeech, multimed
from evoxtral_train.config.data import PackConfig
from evoxtral_train.config.evaluation import EvalConfig
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import RaftConfig, SftConfig
from evoxtral_train.dataset import augmentation
from evoxtral_train.dataset.augmentation import Bounds, bounds_of
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.dataset.rows import layout_name
from evoxtral_train.decoding.decoder import Completion
from evoxtral_train.families.checkpoint import family_named, open_family
from evoxtral_train.modeling.bases import open_base
from evoxtral_train.records import Candidate, Prediction, read_rows
from evoxtral_train.stages.raft import generate
from evoxtral_train.text.written import written_text

OURS, PUBLISHED = "configs/offline/", "configs/published/offline-"
WITH_PROJECTOR = r"lora.target_modules=.*language_model.*\.(q|k|v|o|gate|up|down)_proj|.*multi_modal_projector\.linear_[12]"


@pytest.mark.parametrize(
    ("config", "settings", "trainable"),
    [
        (f"{PUBLISHED}sft.yaml", (), "124,780,544"),
        (f"{OURS}sft.yaml", (), "108,134,400"),
        (f"{OURS}sft.yaml", (WITH_PROJECTOR,), "109,051,904"),
        (f"{OURS}sft-full.yaml", (), "4,039,302,144"),
        (f"{OURS}sft-full.yaml", ("train.train_audio_tower=true",), "4,676,271,104"),
    ],
)
def test_a_dry_run_without_the_checkpoint_counts_what_is_trained(call, config, settings, trainable):
    result = call("sft", config, *(part for each in settings for part in ("--set", each)), "--dry-run")
    assert result.exit_code == 0, result.stderr
    facts = " ".join(result.stdout.split())
    assert "the class's default config (the checkpoint is not here) parameters 4,676,271,104" in facts
    assert f"trainable parameters {trainable} " in facts


@pytest.mark.parametrize("command", ["raft generate", "raft train", "raft run", "eval"])
def test_every_plan_works_before_its_inputs_exist(call, command):
    for folder in (OURS, PUBLISHED):
        result = call(*command.split(), f"{folder}{command.split()[0]}.yaml", "--dry-run")
        assert result.exit_code == 0, result.stderr
        assert "4,676,271,104 frozen" in result.stdout
        assert "first run: evoxtral data pack" in result.stdout


def test_a_plan_says_that_it_only_assumes_the_family(call, spoken, tmp_path):
    pack = ("data", "pack", f"{OURS}pack.yaml", *sets(f"manifest={spoken}/manifest.jsonl", f"output={tmp_path}/packed"))
    evaluation = ("eval", f"{OURS}eval.yaml")
    for command, key, *more in ((evaluation, "model.family"), (pack, "family", "language=null", "layout.kind=null")):
        plan = call(*command, "--dry-run", *sets(f"{key}=null", *more)).stdout
        assert f"Voxtral Realtime: assumed, as the checkpoint is not here; for another family set {key} to voxtral\n" in plan
        assert "assumed" not in call(*command, "--dry-run").stdout


def test_a_language_that_the_prompt_cannot_name_is_refused(call):
    for command in ("pack", "check"):
        refused = call("data", command, "configs/demo/pack.yaml", "--set", "language=en")
        assert refused.exit_code == 2
        assert "language: Voxtral Realtime finds the language itself: its prompt names none — set it to null" in refused.stderr


def test_a_full_fine_tune_that_changes_its_audio_needs_an_extra(call, monkeypatch):
    monkeypatch.setattr(augmentation, "find_spec", lambda name: None)
    said = "augmentation: audiomentations is not installed — run: pip install 'evoxtral[augment]', or set probability to 0"
    assert said in call("sft", f"{OURS}sft-full.yaml", "--dry-run").stdout
    refused = call("sft", f"{OURS}sft-full.yaml")
    assert (refused.exit_code, said in refused.stderr) == (2, True)


def test_the_published_recipe():
    """Of the card, and of the project's code where the card leaves it open."""
    pack = load_config(REPO / f"{PUBLISHED}pack.yaml", PackConfig)
    assert (pack.target, pack.language, pack.layout.room_tokens, pack.tags.unknown) == ("tagged_text", "en", 513, "keep")
    assert layout_name(pack, family_named("voxtral")) == "transcription_request"
    sft = load_config(REPO / f"{PUBLISHED}sft.yaml", SftConfig)
    assert (sft.lora.r, sft.lora.alpha, sft.lora.dropout) == (64, 128, 0.05)
    train = sft.train
    assert (train.epochs, train.batch_size, train.gradient_accumulation, train.learning_rate) == (3, 2, 8, 2e-4)
    assert (train.schedule, train.warmup_steps, train.weight_decay, train.max_grad_norm) == ("cosine", 50, 0.01, 1.0)
    assert (train.gradient_checkpointing, train.evaluate_every_steps, train.keep_checkpoints) == (True, 50, 3)
    assert (train.method, train.neftune_alpha, sft.validation.measure) == ("lora", 5.0, "loss")
    raft = load_config(REPO / f"{PUBLISHED}raft.yaml", RaftConfig)
    generate, train = raft.generate, raft.train
    assert (generate.candidates, generate.temperature, generate.top_p, generate.max_new_tokens) == (4, 0.7, 0.9, 512)
    assert (raft.score.profile, raft.curate.drop_lowest_share, raft.curate.drop_by) == ("card", 0.1, "threshold")
    assert (train.epochs, train.batch_size, train.gradient_accumulation, train.learning_rate) == (1, 2, 8, 5e-5)
    assert (train.schedule, train.warmup_steps, train.weight_decay, train.max_grad_norm) == ("cosine", 20, 0.01, 1.0)
    assert (len(raft.rounds), raft.gate.split, train.neftune_alpha) == (1, None, None)
    evaluation = load_config(REPO / f"{PUBLISHED}eval.yaml", EvalConfig)
    assert (evaluation.split, evaluation.decode.max_new_tokens, evaluation.decode.known_tags_only) == ("test", 512, False)


def test_the_stretch_and_the_bits_of_the_full_fine_tune():
    """Rates from 0.5 to 2.0 and 8 to 12 bits; nothing else is changed."""
    augmentation = load_config(REPO / f"{OURS}sft-full.yaml", SftConfig).augmentation
    assert augmentation.probability == 0.8
    assert bounds_of(augmentation, [], longest=3.0) == Bounds(0.0, None, (0.5, 2.0), 0.0, False, (8, 12))
    assert bounds_of(augmentation, [], longest=1.25).stretch_to == (0.5, 1.25), "no further chunk of 30 s"


def test_the_language_that_a_model_may_begin_with_is_no_part_of_what_it_wrote():
    tokenizer = open_family(TINY_OFFLINE_BASE).tokenizer
    for text in ("lang:en Hello.", "lang:deHello.", "Hello."):
        assert written_text(tokenizer, tokenizer.encode(text, bos=False, eos=False)) == "Hello."


def test_nor_of_what_a_candidate_teaches(packed):
    """The prompt may name no language; then the model writes it itself."""
    base, split = open_base(Model(base=str(TINY_OFFLINE_BASE))), PackedSplit(packed["transcription_request"], "train")
    encode = base.family.tokenizer.encode
    for written, learned in (("lang:en [sighs] Hello.", "[sighs] Hello."), ("[sighs] Hello.", "[sighs] Hello.")):
        completion = Completion("a", 0, encode(written, bos=False, eos=False), "eos", -0.1, [])
        candidate = generate._candidate(completion, base, split, 0, "candidates")
        assert (candidate.text, candidate.token_ids) == (learned, encode(learned, bos=False, eos=False))


@pytest.fixture
def two_languages(spoken, call, tmp_path):
    """LibriSpeech in English and MultiMed in German, both in their own shapes, as one manifest."""
    clips = [row | {"audio": spoken / row["audio"]} for row in rows_of(spoken)[:8]]
    merged = tmp_path / "manifest.jsonl"
    with merged.open("w", encoding="utf-8") as file:
        for name, source, settings in (
            ("librispeech", librispeech(clips, tmp_path / "librispeech")[0], ()),
            ("multimed", multimed(clips, tmp_path / "multimed", "German")[0], ("source.name=German", "language=de")),
        ):
            output = tmp_path / f"imported-{name}"
            settings = sets(f"source.path={source}", f"output={output}", *settings)
            result = call("data", "import", f"configs/import/{name}.yaml", *settings)
            assert result.exit_code == 0, result.stderr
            for row in rows_of(output):
                file.write(json.dumps(row | {"id": f"{name} {row['id']}", "audio": str(output / row["audio"])}) + "\n")
    return merged


def sets(*settings) -> list[str]:
    return [part for each in (*settings, "tracking.mode=disabled") for part in ("--set", each)]


def test_two_languages_are_packed_and_trained_in_one_run(call, two_languages, tmp_path):
    pack = sets(f"manifest={two_languages}", f"base={TINY_OFFLINE_BASE}", f"output={tmp_path}/packed")
    result = call("data", "check", "configs/offline/pack-asr.yaml", *pack)
    assert re.search(r"languages +en 8, de 8\n", result.stdout)
    result = call("data", "pack", "configs/offline/pack-asr.yaml", *pack)
    assert result.exit_code == 0, result.stderr
    split, family = PackedSplit(tmp_path / "packed", "train"), open_family(TINY_OFFLINE_BASE)
    prompts = [family.tokenizer.decode(split.layout.prompt_ids(split.clip(index))) for index in range(len(split))]
    assert prompts == ["lang:en"] * 6 + ["lang:de"] * 6
    assert split.examples[0].target_text == "chapter 0 of the book"
    model, dataset = f"model.base={TINY_OFFLINE_BASE}", f"dataset={tmp_path}/packed"
    result = call("sft", "configs/offline/sft.yaml", *sets(model, dataset, f"output={tmp_path}/sft", "train.epochs=1"))
    assert result.exit_code == 0, result.stderr
    system = f"systems=[{{name: SFT, adapter: {tmp_path}/sft}}]"
    few = ("bootstrap.samples=10", "bootstrap.permutations=199", "decode.max_new_tokens=8")
    result = call("eval", "configs/offline/eval-asr.yaml", *sets(model, dataset, f"output={tmp_path}/eval", system, *few))
    assert result.exit_code == 0, result.stderr
    written = read_rows(tmp_path / "eval/predictions/SFT.jsonl", Prediction)
    assert [row.reference for row in written] == ["chapter 7 of the book", "the patient has 7 complaints"]
    assert json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))["systems"]["SFT"]["cut_clips"] == 2
    assert re.search(r"cut short, SFT +2 clips, at decode.max_new_tokens or the end of their row", result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [OURS, PUBLISHED])
def test_the_recipes_run_one_after_the_other(call, spoken, tmp_path, recipe):
    """Only the names of the model and the data differ."""
    base, dataset, adapter = f"model.base={TINY_OFFLINE_BASE}", f"dataset={tmp_path}/packed", f"adapter={tmp_path}/sft"
    systems = f"systems=[{{name: base}}, {{name: SFT, adapter: {tmp_path}/sft}}, {{name: RAFT, adapter: {tmp_path}/raft/result}}]"
    for command, name, *settings in (
        ("data pack", "pack", f"base={TINY_OFFLINE_BASE}", f"manifest={spoken}/manifest.jsonl", f"output={tmp_path}/packed"),
        ("sft", "sft", dataset, base, f"output={tmp_path}/sft"),
        ("raft run", "raft", dataset, base, adapter, f"output={tmp_path}/raft"),
        ("eval", "eval", dataset, base, systems, f"output={tmp_path}/eval"),
    ):
        result = call(*command.split(), f"{recipe}{name}.yaml", *sets(*settings))
        assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "sft/metrics.json").read_text("utf-8"))
    assert metrics["steps"] == 3  # 12 clips are one step of 2 × 8, three epochs
    assert len(read_rows(tmp_path / "raft/round-1/candidates/candidates.jsonl", Candidate)) == 48
    systems = json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))["systems"]
    assert all(system["wer"]["micro"]["value"] >= 0 for system in systems.values())
