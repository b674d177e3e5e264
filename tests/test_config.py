import ast
import doctest
import re
import typing

import pytest
import yaml

from conftest import REPO
from evoxtral_train.config import data, describe, evaluation, sections, training, transcription
from evoxtral_train.config.data import ImportConfig, PackConfig, SynthConfig
from evoxtral_train.config.describe import commented, config_of, keys_with_a_line
from evoxtral_train.config.evaluation import EvalConfig
from evoxtral_train.config.fields import description_of, source_of
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.config.training import RaftConfig, SftConfig
from evoxtral_train.errors import ConfigError

SHIPPED = sorted((REPO / "configs").rglob("*.yaml"))
SECTIONS = [
    each for module in (sections, data, training, evaluation, transcription) for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, sections.Section) and each.__module__ == module.__name__
]  # fmt: skip
FIELDS = {f"{section.__name__}.{name}": field for section in SECTIONS for name, field in section.model_fields.items()}
shipped_configs = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPO / "configs")))


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, "utf-8")
    return path


def test_configs_are_shipped():
    assert len(SHIPPED) == 62


@shipped_configs
def test_every_shipped_config_parses_and_spells_out_every_field(path):
    config = load_config(path, config_of(path))
    written = yaml.safe_load(path.read_text("utf-8"))
    for name, value in config.model_dump(mode="json").items():
        assert name in written, f"{path.name} does not show {name}"
        if isinstance(value, dict) and name != "tracking":
            assert set(written[name]) == set(value), f"{path.name}: {name}"


@shipped_configs
def test_every_line_of_a_shipped_config_that_sets_a_number_is_a_number(path):
    def strings(value):
        if isinstance(value, dict):
            return [each for inner in value.values() for each in strings(inner)]
        return [value] if isinstance(value, str) else []

    for text in strings(load_config(path, config_of(path)).model_dump(mode="json")):
        with pytest.raises(ValueError, match="could not convert"):
            float(text)


def test_the_published_recipe():
    sft = load_config(REPO / "configs/published/sft.yaml", SftConfig)
    raft = load_config(REPO / "configs/published/raft.yaml", RaftConfig)
    pack = load_config(REPO / "configs/published/pack.yaml", PackConfig)
    assert (sft.lora.r, sft.lora.alpha) == (16, 64)
    assert (pack.layout.kind, pack.target, pack.audio.prepad_samples) == ("packed", "tags", 240_480)
    generate = raft.generate
    assert (generate.candidates, generate.temperature, generate.top_p, generate.max_new_tokens) == (4, 0.7, 0.9, 64)
    train = raft.train
    assert (train.learning_rate, train.epochs, train.schedule, train.warmup_steps) == (5e-5, 1, "cosine", 20)
    assert (train.batch_size, train.gradient_accumulation, raft.curate.drop_lowest_share) == (2, 8, 0.1)


@pytest.mark.parametrize("path", sorted((REPO / "configs/published").glob("*.yaml")), ids=lambda path: path.name)
def test_every_line_of_the_published_recipe_says_where_it_is_from(path):
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    values = [line for line in lines if line.split("#")[0].strip() and not line.split("#")[0].rstrip().endswith(":")]
    unsourced = [line for line in values if not re.search(r"#.*\[(RL|3B|code|ours)\]|see sft.yaml", line)]
    parts_of_a_section = [line for line in unsourced if line.startswith("    ")]  # its first line says it
    assert [line for line in unsourced if line not in parts_of_a_section] == []


@shipped_configs
def test_every_comment_of_a_shipped_config_is_the_description_of_its_field(path):
    text = path.read_text("utf-8")
    assert commented(text, config_of(path)) == text, "run: make configs"


def test_the_reference_is_up_to_date():
    assert describe.reference() == (REPO / "docs/configuration.md").read_text("utf-8"), "run: make configs"


def test_comments_replace_old_ones_and_leave_what_belongs_to_the_file():
    text = """\
# A title.
split: dev # [RL] [code] old
# Why two.
systems: # old
                                # and older
  - {name: base}  # the base itself
decode:
  batch_tokens: 7
"""
    assert (
        commented(text, EvalConfig)
        == f"""\
# A title.
split: dev                      # [RL] [code] Split to measure.
# Why two.
systems:                        # What is measured, one system per line.
{"".join(f"{' ' * 32}#   {name}: {description_of(field)}{chr(10)}" for name, field in evaluation.System.model_fields.items())}\
  - {{name: base}}  # the base itself
decode:                         # How the systems decode, always greedily.
  batch_tokens: 7               # Rows × length held at once, in tokens; 65536 take 7.4 GB with the 4B model.
"""
    )
    assert doctest.testmod(describe) == (0, 1)


UNITS = (
    r"(?i)\b(s|seconds?|ms|db|dbfs|samples|semitones|tokens?|words?|clips?|rows?|tags?|steps?|batches|characters|requests|retries|usd|"
    r"letters per second|rounds?|candidates|checkpoints|processes|permutations|passes|layers|channels|entries|positions|points|"
    r"bits|share|probability|rate|factor|weight(ed)?|norm|rank|seed|f1|difference|quantile|threshold|gb)\b"
)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_described_in_short_sentences_with_its_unit(name):
    field, text = FIELDS[name], description_of(FIELDS[name])
    assert re.fullmatch(r"\S.*[^.]\.", text), "a description is one or more sentences"
    assert len(text) <= 180
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    assert all(re.search(rf"\b{choice}\b", text) for choice in choices), "a description names every choice"
    assert not text[0].islower() or re.match(r"null: |\w+( \(.*?\))? \| ", text), "it starts with a capital, null or a choice"
    is_number = re.search(r"\b(int|float)\b", str(field.annotation))
    assert not is_number or re.search(UNITS, f"{name.replace('_', ' ')} {text}"), "a number needs a unit"


def test_a_published_source_of_a_default_is_cited_by_a_published_config():
    cited = {}
    for path in (REPO / "configs/published").glob("*.yaml"):
        text = path.read_text("utf-8")
        for key, _, field in keys_with_a_line(yaml.compose(text, Loader=yaml.SafeLoader), config_of(path)):
            cited.setdefault(id(field), set()).update(re.findall(r"\[(RL|3B|code)\]", text.splitlines()[key.start_mark.line]))
    for name, field in FIELDS.items():
        if id(field) in cited:
            assert set(re.findall(r"\b(RL|3B|code)\b", source_of(field) or "")) <= cited[id(field)], name


def test_unknown_keys_at_any_depth_name_the_nearest(tmp_path):
    text = (REPO / "configs/sft.yaml").read_text("utf-8").replace("learning_rate", "learing_rate").replace("output", "outptu")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), SftConfig)
    assert "unknown key 'outptu', did you mean 'output'?" in str(caught.value)
    assert "unknown key 'train.learing_rate', did you mean 'train.learning_rate'?" in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "line", "unknown", "nearest"),
    [
        (EvalConfig, "systems: [{name: base, adaptor: x}]", "systems.0.adaptor", "systems.0.adapter"),
        (
            EvalConfig,
            "systems: [{name: base}]\ncomparisons: [{befor: base, after: base}]",
            "comparisons.0.befor",
            "comparisons.0.before",
        ),
        (SftConfig, "augmentation: {limits: {sighs: {gian_db: 1}}}", "augmentation.limits.sighs.gian_db", ".*.sighs.gain_db"),
    ],
)
def test_unknown_keys_inside_lists_and_mappings(tmp_path, schema, line, unknown, nearest):
    with pytest.raises(ConfigError, match=f"unknown key '{unknown}', did you mean '{nearest}'"):
        load_config(write(tmp_path, f"output: a\ndataset: b\nmodel: {{base: c}}\n{line}\n"), schema)


def test_duplicate_keys_are_refused_with_their_lines(tmp_path):
    text = "output: a\nmanifest: m\nbase: b\naudio:\n  max_seconds: 3\n  max_seconds: 4\n"
    with pytest.raises(ConfigError, match="duplicate key 'max_seconds' in lines 5 and 6"):
        load_config(write(tmp_path, text), PackConfig)


def test_numbers_in_scientific_notation(tmp_path):
    text = "output: a\ndataset: b\nmodel: {base: c}\ntrain: {epochs: 1, learning_rate: 2e-4, weight_decay: 1E-2}\n"
    config = load_config(write(tmp_path, text), SftConfig)
    assert (config.train.learning_rate, config.train.weight_decay) == (0.0002, 0.01)


def test_on_and_off_are_words_and_true_and_false_are_not(tmp_path):
    text = "output: a\ndataset: b\nmodel: {base: no}\naudio_cache: off\n"
    text += "train: {epochs: 1, learning_rate: 1, gradient_checkpointing: true}\n"
    config = load_config(write(tmp_path, text), SftConfig, ["audio_cache=on"])
    assert (config.model.base, config.audio_cache, config.train.gradient_checkpointing) == ("no", "on", True)


def test_set_obeys_the_same_rules():
    path = REPO / "configs/sft.yaml"
    assert load_config(path, SftConfig, ["train.learning_rate=3e-3", "lora.r=8"]).train.learning_rate == 0.003
    with pytest.raises(ConfigError, match="unknown key 'lora.rr', did you mean 'lora.r'"):
        load_config(path, SftConfig, ["lora.rr=8"])
    with pytest.raises(ConfigError, match="not of the form"):
        load_config(path, SftConfig, ["lora.r"])
    with pytest.raises(ConfigError, match="holds a value"):
        load_config(path, SftConfig, ["output.name=8"])


def test_set_reaches_items_of_lists():
    path = REPO / "configs/demo/eval-sft.yaml"
    config = load_config(path, EvalConfig, ["systems.0.name=x", "systems.2.top_k=3", "systems.3={name: y}"])
    assert [system.name for system in config.systems] == ["x", "probe", "SFT", "y"]
    assert config.systems[2].top_k == 3
    path = REPO / "configs/demo/raft.yaml"
    assert load_config(path, RaftConfig, ["rounds.1.candidates=8"]).rounds[1].candidates == 8
    path = REPO / "configs/synth.yaml"
    assert load_config(path, SynthConfig, ["rates_wpm.0=150"]).rates_wpm == (150, 190)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("systems.4.name=x", "'systems' is a list of 3, and '4' is none of its numbers — use systems.0 to systems.2, or"),
        ("systems.name=x", "'systems' is a list of 3, and 'name' is none of its numbers"),
        ("systems.-1.name=x", "'systems' is a list of 3, and '-1' is none of its numbers"),
        ("systems.0.nam=x", "unknown key 'systems.0.nam', did you mean 'systems.0.name'?"),
        ("systems.0.name.x=1", "'systems.0.name' holds a value, not further keys"),
        ("systems.3.top_k=1", "systems.3.name: is required and missing"),
    ],
)
def test_set_says_what_is_wrong_with_an_item(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(REPO / "configs/demo/eval-sft.yaml", EvalConfig, [override])
    assert message in str(caught.value)


def test_set_reaches_sections_that_are_null(tmp_path):
    text = "output: a\ndataset: b\nmodel: {base: c}\naugmentation: null\ntrain: {epochs: 1, learning_rate: 1}\n"
    config = load_config(write(tmp_path, text), SftConfig, ["augmentation.probability=0.5"])
    assert (config.augmentation.probability, config.augmentation.gain_db) == (0.5, 6.0)
    with pytest.raises(ConfigError, match="unknown key 'augmentation.probabilty', did you mean 'augmentation.probability'"):
        load_config(write(tmp_path, text), SftConfig, ["augmentation.probabilty=0.5"])
    tags = ["transcript.leading_tag.column=style", "transcript.leading_tag.tags.whisper=whispers"]
    config = load_config(REPO / "configs/import.yaml", ImportConfig, tags)
    assert (config.transcript.leading_tag.column, config.transcript.leading_tag.tags) == ("style", {"whisper": "whispers"})
    text = "output: a\ndataset: b\nmodel: {base: c}\nadapter: d\nrounds: null\ntrain: {epochs: 1, learning_rate: 1}\n"
    assert load_config(write(tmp_path, text), RaftConfig, ["rounds.0.candidates=8"]).rounds[0].candidates == 8


def test_all_problems_at_once(tmp_path):
    text = "output: a\ndataset: b\nmodel: {base: c, dtype: int8}\ntrain: {epochs: -1}\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text), SftConfig)
    message = str(caught.value)
    assert "model.dtype: Input should be 'float32' or 'bfloat16', got 'int8' (float32 | bfloat16: type of the frozen" in message
    assert "train.epochs: Input should be greater than 0, got -1 (Passes over the training clips)" in message
    assert "train.learning_rate: is required and missing (Peak learning rate)" in message


@pytest.mark.parametrize(("text", "reason"), [("a: [1", "not YAML"), ("- 1", "a mapping"), ("", "a mapping")])
def test_what_is_no_config(tmp_path, text, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(write(tmp_path, text), SftConfig)


def test_missing_config_file(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml", SftConfig)


def test_every_field_is_read_somewhere():
    """A field that no code outside the schema reads would be a setting that does nothing."""
    read = set()
    for path in (REPO / "src").rglob("*.py"):
        if path.parent.name != "config":
            tree = ast.parse(path.read_text("utf-8"))
            read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unread = {name for name in FIELDS if name.partition(".")[2] not in read}
    together = {
        f"{each.__name__}.{name}"
        for each in (data.Clips, training.RewardWeights, evaluation.Gates) for name in each.model_fields
    }  # fmt: skip
    assert unread <= together  # read by model_dump


@pytest.mark.parametrize("origin", ["https://example.org/", "https://Example.org", "example.org", "https://a.org/b", "null"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    """It would match no page, and nobody would know why."""
    with pytest.raises(ConfigError, match="an origin is scheme://host"):
        load_config(None, ServeConfig, [f"listen.allowed_origins=[{origin!r}]"])
    assert ServeConfig(listen={"allowed_origins": ["https://example.org:8443", "*"]}).listen.allowed_origins


def test_keys_that_do_not_go_together_are_named_in_one_sentence():
    with pytest.raises(ConfigError) as refused:
        load_config(None, ServeConfig, ["live.rows=adapter"])
    assert str(refused.value) == "the call: config: live.rows is adapter, but no adapter is named"
