"""`evoxtral serve` as a command: its plan, its options, what it needs; and the adapter that comes with it."""

import json
import sys

import pytest
import yaml

from conftest import REPO, make
from evoxtral_train import shipped
from evoxtral_train.families.checkpoint import base_fingerprint
from evoxtral_train.modeling.adapters import base_of, find_adapter
from evoxtral_train.stages import serve

TAGGER = REPO / "data/tiny-tagger"


@pytest.fixture(scope="module")
def plan():
    from evoxtral_train.config.loader import load_config
    from evoxtral_train.config.serving import ServeConfig
    from evoxtral_train.runs import Options

    overrides = ["model.base=data/tiny-base", "adapters=[data/tiny-tagger]", "live.streams=3", "listen.port=0"]
    return serve.run(load_config(REPO / "configs/serve.yaml", ServeConfig, overrides), Options(dry_run=True)).facts


def test_the_plan(plan):
    assert plan["adapter data/tiny-tagger"] == "layout aligned: tags while people speak"
    assert (plan["rows"], plan["streams"], plan["memory"]) == ("both", "3 at a time", "3.9 MB per stream")
    assert plan["address"] == "http://127.0.0.1, any free port"
    assert plan["API key"] == "none: whoever reaches this address may use the server"


def test_the_planned_memory_is_what_a_stream_takes():
    from evoxtral_train.config.serving import ServeConfig
    from evoxtral_train.serving.engine import Engine

    engine = Engine(ServeConfig(model={"base": "data/tiny-base"}, adapters=["data/tiny-tagger"], live={"streams": 1}))
    planned, slots = engine.plan()
    network, _, settings = engine.transcriber.loaded
    assert (planned, slots) == (engine._sizes(network, settings)[2], 1)


def test_more_streams_than_fit_are_refused(call):
    result = call("serve", "--base", "data/tiny-base", "--set", "live.streams=1000000", "--dry-run")
    assert result.exit_code == 2
    assert "live.streams: 1000000 live streams need" in result.stderr


def test_an_adapter_that_needs_the_whole_utterance_is_said_to_be_late(call, tmp_path):
    record = json.loads((TAGGER / "evoxtral.json").read_text("utf-8"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((TAGGER / name).read_bytes())
    record["layout"]["layout"] = "deferred"
    (tmp_path / "evoxtral.json").write_text(json.dumps(record), "utf-8")
    result = call("serve", "--adapter", tmp_path, "--port", 9000, "--host", "::1", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "layout deferred: tags when an utterance has ended" in result.stdout
    assert "http://[::1]:9000" in result.stdout


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "websockets", "prometheus_client"])
def test_a_missing_extra_names_what_to_install(monkeypatch, call, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = call("serve", "--base", "data/tiny-base")
    assert result.exit_code == 2
    assert f"{package} is not installed — run: pip install 'evoxtral[serve]'" in result.stderr


def test_the_shipped_tagger_is_small_and_of_the_shipped_base(tmp_path, monkeypatch):
    """Also where no clone is."""
    monkeypatch.chdir(tmp_path)
    adapter = find_adapter(shipped.TINY_TAGGER)
    assert (adapter.folder, adapter.base) == (TAGGER, base_fingerprint(REPO / "data/tiny-base"))
    assert base_of(adapter) == "data/tiny-base"
    assert sum(path.stat().st_size for path in TAGGER.iterdir()) < 1_000_000


def test_the_readme_has_the_taggers_figures():
    card = (TAGGER / "README.md").read_text("utf-8")
    [results] = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    f1, false = metrics["tag F1, micro"], metrics["false tags per untagged clip"]
    figures = f"micro F1 {f1['value']:.2f} [{f1['args']['low']:.2f}, {f1['args']['high']:.2f}]"
    readme = " ".join((REPO / "README.md").read_text("utf-8").split())
    assert figures in readme
    assert f"{false['value']:.2f} false tags per untagged clip); both know synthetic" in readme


def test_make_serve_serves_what_is_shipped():
    plan = make("-n", "serve").stdout
    assert "evoxtral serve configs/serve.yaml --base data/tiny-base --adapter data/tiny-tagger" in plan
