"""Shared fixtures: the tiny base, a small spoken corpus, the small demo, and the command line called in process.

`make test` runs two workers (pytest-xdist). What is costly and only read is made once for both, by `made_once`.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
# One thread for each worker, and for each process that a test starts; read when numpy and torch are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

REPO = Path(__file__).parent.parent
TINY_BASE = REPO / "data" / "tiny-base"
TINY_OFFLINE_BASE = REPO / "data" / "tiny-offline-base"

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # it may be busy
settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What needs the demo comes first: one worker makes it while the other, which begins in the middle, does the rest."""
    items.sort(key=lambda item: "demo" not in item.fixturenames)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make) -> the folder that make(folder) filled, by whichever worker came first. Tests only read it."""
    root = tmp_path_factory.getbasetemp()  # a worker's own lies in the run's
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made-once"
    root.mkdir(exist_ok=True)

    def made_once(name: str, make) -> Path:
        folder, finished = root / name, root / f"{name}.finished"
        with FileLock(root / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a failed attempt left
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return made_once


@pytest.fixture(scope="session", autouse=True)
def _at_the_repo():
    """Shipped configs name files relative to the repository's root."""
    os.chdir(REPO)


@pytest.fixture(scope="session")
def call():
    """evoxtral with arguments -> the result, with exit_code, stdout and stderr."""
    from evoxtral_train.cli.main import app

    def call(*arguments) -> object:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


# `--multi_gpu` chooses accelerate's launcher of several processes; on a machine without a GPU they meet over gloo.
LAUNCHER = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", "0", "-m")  # fmt: skip


def launch(*arguments) -> SimpleNamespace:
    """evoxtral with arguments in two processes, through the real launcher -> like the result of `call`."""
    command = [sys.executable, "-m", *LAUNCHER, "evoxtral_train.cli", *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    return SimpleNamespace(exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture(scope="session")
def tag_rules():
    """The shipped table of tags, unknown ones refused."""
    from evoxtral_train.config.sections import Tags
    from evoxtral_train.text.taxonomy import TagRules

    return TagRules.of(Tags(table=REPO / "data/tags.yaml"))


def load_tiny(dtype: str = "float32"):
    """The tiny base's network, of its own: a test may change it."""
    from evoxtral_train.families.checkpoint import open_family

    return open_family(TINY_BASE).load(dtype)


@pytest.fixture(scope="session")
def family():
    """The tiny base's data side."""
    from evoxtral_train.families.checkpoint import open_family

    return open_family(TINY_BASE)


@pytest.fixture(scope="session")
def processor(family):
    return family.processor


@pytest.fixture(scope="session")
def clock(family):
    return family.clock


@pytest.fixture(scope="session")
def network(family):
    """The tiny base in float32, frozen. Tests must not change it."""
    return family.load("float32")


@pytest.fixture(scope="session")
def model(network):
    return network.model


@pytest.fixture(scope="session")
def spoken(made_once) -> Path:
    """A folder with a manifest of 36 spoken clips: 12 for SFT and 12 for RAFT, 6 and 6 held out."""
    from evoxtral_train.config.data import Clips, SynthConfig
    from evoxtral_train.config.sections import Tracking
    from evoxtral_train.runs import Options
    from evoxtral_train.stages.data import synth

    def make(folder: Path) -> None:
        config = SynthConfig(
            output=folder / "data", grammar=REPO / "data/scripts/grammar.yaml", seed=3,
            clips=Clips(train=12, validation=6, test=6, raft=12), tracking=Tracking(mode="disabled"),
        )  # fmt: skip
        synth.run(config, Options())

    return made_once("spoken", make) / "data"


def rows_of(spoken: Path) -> list[dict]:
    """The rows of `spoken`'s manifest, their audio by absolute path: to be changed, and written elsewhere."""
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    return [row | {"audio": str(spoken / row["audio"])} for row in rows]


@pytest.fixture(scope="session")
def packed(spoken, made_once) -> dict[str, Path]:
    """The spoken clips, packed in several layouts: {"packed", "deferred" and "transcription_request": folder}, the last
    for the offline family."""
    from evoxtral_train.config.data import Layout, PackConfig
    from evoxtral_train.config.sections import Tracking
    from evoxtral_train.runs import Options
    from evoxtral_train.stages.data import pack

    bases = {"packed": TINY_BASE, "deferred": TINY_BASE, "transcription_request": TINY_OFFLINE_BASE}

    def make(folder: Path) -> None:
        for kind, base in bases.items():
            config = PackConfig(
                manifest=spoken / "manifest.jsonl", output=folder / kind, base=str(base), layout=Layout(kind=kind),
                tracking=Tracking(mode="disabled"), language=None if base == TINY_BASE else "en",
            )  # fmt: skip
            pack.run(config, Options())

    folder = made_once("packed", make)
    return {kind: folder / kind for kind in bases}


@pytest.fixture(scope="session")
def one_tag(spoken, made_once):
    """one_tag(layout) -> the spoken clips, packed, 20 of them in the split train and 4 in raft: enough to tell tagged clips from
    others. Every tag is [sighs] but [laughs] and [gasps]."""
    from evoxtral_train.config.data import Layout, PackConfig
    from evoxtral_train.config.sections import Tags, Tracking
    from evoxtral_train.records import dump_row
    from evoxtral_train.runs import Options
    from evoxtral_train.stages.data import pack
    from evoxtral_train.text.tags import BASE_TAGS

    tags = Tags(table=REPO / "data/tags.yaml", map={tag: "sighs" for tag in BASE_TAGS if tag not in ("laughs", "gasps")})

    def make(folder: Path, kind: str) -> None:
        rows, moved = rows_of(spoken), [f"raft-{number:05d}" for number in range(8)]
        rows = [row | {"split": "train" if row["id"] in moved else row["split"]} for row in rows]
        (folder / "manifest.jsonl").write_text("".join(map(dump_row, rows)), "utf-8")
        base, language = (TINY_OFFLINE_BASE, "en") if kind == "transcription_request" else (TINY_BASE, None)
        config = PackConfig(
            manifest=folder / "manifest.jsonl", output=folder / "packed", base=str(base), layout=Layout(kind=kind), tags=tags,
            tracking=Tracking(mode="disabled"), language=language,
        )  # fmt: skip
        pack.run(config, Options())

    return lambda kind: made_once(f"one-tag-{kind}", partial(make, kind=kind)) / "packed"


@pytest.fixture(scope="session")
def probed(call, one_tag, made_once):
    """probed(layout) -> a run of `evoxtral probe` on `one_tag`, whose text of the split raft nobody could read; stdout.txt is
    beside it."""
    from evoxtral_train.dataset.reader import PackedSplit

    def make(folder: Path, kind: str) -> None:
        base = TINY_OFFLINE_BASE if kind == "transcription_request" else TINY_BASE
        sets = [f"dataset={one_tag(kind)}", f"output={folder / 'probe'}", f"model.base={base}", "tracking.mode=disabled"]
        sets += ["bootstrap.samples=50", "clips_shown=1"]
        open_split = PackedSplit.__init__

        def unread(self, dataset, split):
            open_split(self, dataset, split)
            self.examples = None if split == "raft" else self.examples

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PackedSplit, "__init__", unread)
            result = call("probe", REPO / "configs/demo/probe.yaml", *(part for each in sets for part in ("--set", each)))
        assert result.exit_code == 0, result.stderr
        (folder / "stdout.txt").write_text(result.stdout, "utf-8")

    return lambda kind: made_once(f"probed-{kind}", partial(make, kind=kind)) / "probe"


@pytest.fixture(scope="session")
def tagging(packed, made_once) -> Path:
    """A run of SFT whose adapter has learned its 12 clips by heart: it writes their tags."""
    from evoxtral_train.config.loader import load_config
    from evoxtral_train.config.training import SftConfig
    from evoxtral_train.runs import Options
    from evoxtral_train.stages import sft

    def make(folder: Path) -> None:
        settings = ["train.epochs=45", "train.batch_size=6", "train.gradient_accumulation=1", "train.evaluate_every_steps=90"]
        settings += [f"output={folder / 'sft'}", f"dataset={packed['deferred']}", "tracking.mode=disabled"]
        sft.run(load_config(REPO / "configs/demo/sft.yaml", SftConfig, settings), Options())

    return made_once("tagging", make) / "sft"


@pytest.fixture(scope="session")
def server():
    """The tiny base with the shipped adapter that tags while listening, served: see serving.py."""
    from serving import config_of, serving_anew

    with serving_anew(config_of(REPO / "data/tiny-tagger")) as running:
        yield running


@pytest.fixture
def clip_row(tmp_path):
    """Make one manifest row with its audio: clip_row(id, text, samples=…, rate_hz=…) -> dict."""

    def clip_row(identity: str, text: str = "[sighs] i told you.", samples=None, rate_hz: int = 16_000) -> dict:
        if samples is None:
            samples = 0.1 * np.sin(2 * np.pi * 220 * np.arange(2 * rate_hz) / rate_hz)
        path = tmp_path / f"{identity}.wav"
        soundfile.write(path, np.asarray(samples, np.float32), rate_hz, subtype="FLOAT")
        return {"id": identity, "audio": path.name, "text": text, "split": "train"}

    return clip_row


@pytest.fixture
def write_manifest(tmp_path):
    def write_manifest(rows: list) -> Path:
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return path

    return write_manifest


CARD = ("score.profile=card", "score.verifier=null", "gate.measure=reward")
CARD_SETS = tuple(part for each in CARD for part in ("--set", each))
"""RAFT with references: for the demo's config where there is no probe."""

SMALL = {
    "synth.yaml": {"clips": {"train": 48, "validation": 6, "test": 10, "raft": 24}},
    "sft.yaml": {"train": {"epochs": 2, "batch_size": 8, "evaluate_every_steps": 5}},
    "raft.yaml": {
        "rounds": [{}],
        "generate": {"candidates": 2, "max_new_tokens": 20, "temperature": 1.3},
        "gate": {"measure": "reward", "min_gain": -1},  # round 1 is kept, whatever it is worth
        "score": {"profile": "card", "verifier": None},  # a probe of 48 clips knows too few tags to tell candidates apart
        "train": {"batch_size": 8, "warmup_steps": 1},
    },
    "probe.yaml": {"bootstrap": {"samples": 100}},
    "eval-sft.yaml": {"decode": {"max_new_tokens": 20}, "bootstrap": {"samples": 100}},
    "eval-raft.yaml": {"decode": {"max_new_tokens": 20}, "bootstrap": {"samples": 100}},
}


def merge(content: dict, changes: dict) -> dict:
    return content | {key: merge(content[key], value) if isinstance(value, dict) else value for key, value in changes.items()}


def make(*arguments) -> subprocess.CompletedProcess:
    """`make` as a newcomer calls it: no part of the `make test` that may be running."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=REPO, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def demo(made_once):
    """The folder that `make demo` filled, with the shipped demo configs cut small; `configs/` beside it."""

    def fill(root: Path) -> None:
        folder, configs = root / "runs", root / "configs"
        configs.mkdir()
        for path in (REPO / "configs/demo").glob("*.yaml"):
            text = path.read_text("utf-8").replace("runs/demo", str(folder))
            (configs / path.name).write_text(yaml.safe_dump(merge(yaml.safe_load(text), SMALL.get(path.name, {}))), "utf-8")
        done = make("demo", f"DEMO={folder}", f"CONFIGS={configs}")
        assert done.returncode == 0, done.stderr[-3000:]
        (root / "stdout.txt").write_text(done.stdout, "utf-8")

    return made_once("demo", fill)


@pytest.fixture
def raft(demo, call, tmp_path):
    """evoxtral raft … with the demo's config, into a copy of its folder that a test may change."""
    copy = tmp_path / "raft"
    shutil.copytree(demo / "runs" / "raft", copy, ignore=shutil.ignore_patterns("wandb", "checkpoints"))

    def raft(step: str, *more) -> object:
        config = demo / "configs" / "raft.yaml"
        return call("raft", step, config, "--set", f"output={copy}", "--set", "tracking.mode=disabled", *more)

    raft.folder = copy
    return raft
