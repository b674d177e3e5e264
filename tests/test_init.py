"""`evoxtral init`, and what is found where no repository is."""

import pytest
import yaml

from conftest import REPO
from evoxtral_train import shipped
from evoxtral_train.config.data import SynthConfig
from evoxtral_train.config.describe import config_of
from evoxtral_train.config.evaluation import EvalConfig
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Tags
from evoxtral_train.config.training import SftConfig
from evoxtral_train.errors import UsageError
from evoxtral_train.families.checkpoint import resolve_base
from evoxtral_train.stages.init import with_value
from evoxtral_train.synthesis.scripts import Grammar
from evoxtral_train.text.tags import BASE_TAGS
from evoxtral_train.text.taxonomy import Taxonomy


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_init_copies_configs_tags_and_grammar(call, tmp_path):
    result = call("init", tmp_path / "project")
    assert result.exit_code == 0, result.stderr
    made = files(tmp_path / "project")
    own = ("demo", "tagger")  # the clone's: its demo, and the shipped tagger
    expected = {path.relative_to(REPO).as_posix() for path in (REPO / "configs").rglob("*.yaml") if path.parent.name not in own}
    assert made == expected | {"data/tags.yaml", "data/scripts/grammar.yaml"}
    for name in made:
        assert (tmp_path / "project" / name).read_bytes() == (REPO / name).read_bytes()
    assert f"cd {tmp_path / 'project'}\nevoxtral doctor" in result.stdout


def test_init_replaces_nothing(call, tmp_path):
    for name in ("configs/sft.yaml", "data/tags.yaml"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine", "utf-8")
    for option in ((), ("--tiny",)):
        result = call("init", *option, tmp_path)
        assert result.exit_code == 2
        assert "nothing was written: 2 of the files already exist: configs/sft.yaml, data/tags.yaml" in result.stderr
        assert files(tmp_path) == {"configs/sft.yaml", "data/tags.yaml"}
        assert (tmp_path / "configs/sft.yaml").read_text("utf-8") == "mine"


def test_init_into_a_file(call, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    result = call("init", tmp_path / "file")
    assert (result.exit_code, result.stderr.partition(" — ")[0]) == (2, f"error: {tmp_path / 'file'}: is a file, not a folder")


def test_the_tiny_project(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("init", "--tiny")
    assert result.exit_code == 0, result.stderr
    assert "cd " not in result.stdout
    commands = [line.split() for line in result.stdout.splitlines() if line.startswith("evoxtral")]
    named = [word for command in commands for word in command if word.startswith("configs/")]
    assert set(named) | {"data/tags.yaml", "data/scripts/grammar.yaml"} == files(tmp_path)
    for path in (tmp_path / "configs").iterdir():
        text = path.read_text("utf-8")
        config = load_config(path, config_of(path))
        assert "demo/" not in text
        assert text.count("#") == (REPO / "configs/demo" / path.name).read_text("utf-8").count("#")
        assert not any(line.endswith(" ") for line in text.splitlines()), path
        assert getattr(config, "output", None) is None or config.output.parts[0] == "runs"
    small, demo = (load_config(folder / "synth.yaml", SynthConfig) for folder in (tmp_path / "configs", REPO / "configs/demo"))
    assert small.clips.train < demo.clips.train / 2
    assert load_config(tmp_path / "configs/sft.yaml", SftConfig).dataset.as_posix() == "runs/packed"
    adapters = {system.adapter for system in load_config(tmp_path / "configs/eval-sft.yaml", EvalConfig).systems}
    assert {adapter.as_posix() for adapter in adapters if adapter} == {"runs/sft"}


def test_a_value_is_replaced_and_its_comment_stays():
    text = "a:\n  b: 1200   # how many\n  c: 3\nb: 1\n"
    assert with_value(text, "a.b", 96) == "a:\n  b: 96     # how many\n  c: 3\nb: 1\n"
    assert with_value(text, "a.c", 10) == "a:\n  b: 1200   # how many\n  c: 10\nb: 1\n"
    assert yaml.safe_load(with_value(text, "b", "x")) == {"a": {"b": 1200, "c": 3}, "b": "x"}


def test_defaults_are_found_anywhere_and_a_file_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Taxonomy.load(Tags().table).tags == BASE_TAGS
    assert len(Grammar.load(shipped.GRAMMAR).sentences) == 24
    assert resolve_base("data/tiny-base", None) == REPO / "data/tiny-base"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/tags.yaml").write_text("sound: {hums: []}\n", "utf-8")
    assert Taxonomy.load(Tags().table).tags == ("hums",)
    (tmp_path / "data/tiny-base").mkdir()
    assert resolve_base("data/tiny-base", None) == shipped.TINY_BASE


def test_nothing_else_is_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"data/my-tags.yaml: no such tag table"):
        Taxonomy.load((tmp_path / "data/my-tags.yaml").relative_to(tmp_path))
    with pytest.raises(UsageError, match="no such model folder: ./data/other-base"):
        resolve_base("./data/other-base", None)
