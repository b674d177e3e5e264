"""docs/architecture.md names the modules that a clip and a candidate pass through; here they are seen to."""

import importlib
import pkgutil
import re
import sys
from contextlib import contextmanager
from inspect import CO_OPTIMIZED
from pathlib import Path

import pytest

import evoxtral_train
from conftest import CARD_SETS, REPO

PACKAGE = Path(evoxtral_train.__file__).parent
# What every command uses, whatever passes through it: the command line, configs, run folders, messages, tracking.
EVERYWHERE = {
    "__init__", "cli", "config", "errors", "files", "jobs", "plain_text", "processes", "progress", "reading", "records",
    "reporting",
    "run_folders", "runs", "shipped", "tracking", "units",
}  # fmt: skip


@contextmanager
def modules_passed(modules: set[str]):
    """Adds the modules of the package whose functions run meanwhile, as `dataset/rows.py`."""
    seen, root = set(), str(PACKAGE)

    def profile(frame, event, _):
        if event == "call" and frame.f_code.co_flags & CO_OPTIMIZED:  # a function, not a module's or a class's own code
            seen.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        paths = (Path(name).relative_to(PACKAGE) for name in seen if name.startswith(root))
        modules |= {path.as_posix() for path in paths if path.parts[0].removesuffix(".py") not in EVERYWHERE}


def run_traced(call, *arguments) -> set[str]:
    modules: set[str] = set()
    with modules_passed(modules):
        result = call(*arguments, "--set", "tracking.mode=disabled")
    assert result.exit_code == 0, result.stderr
    return modules


@pytest.fixture(scope="module")
def passed(call, spoken, tmp_path_factory) -> dict[str, set[str]]:
    """The modules of the two ways."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "evoxtral_train."):  # what runs when a module is imported is no way
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    folder = tmp_path_factory.mktemp("ways")
    dataset = ("--set", f"dataset={folder}/packed")
    clip = run_traced(
        call, "data", "pack", "configs/demo/pack.yaml", "--set", f"manifest={spoken}/manifest.jsonl", "--set",
        f"output={folder}/packed", "--set", "processes=1",
    )  # fmt: skip
    clip |= run_traced(
        call, "sft", "configs/demo/sft.yaml", *dataset, "--set", f"output={folder}/sft", "--set", "train.epochs=1", "--set",
        "train.warmup_steps=1",
    )  # fmt: skip
    candidate = set()
    for step in ("generate", "score", "curate", "train"):
        candidate |= run_traced(
            call, "raft", step, "configs/demo/raft.yaml", *CARD_SETS, *dataset, "--set", f"output={folder}/raft", "--set",
            f"adapter={folder}/sft", "--set", "generate.max_new_tokens=12", "--set", "train.warmup_steps=1",
        )  # fmt: skip
    return {"A clip": clip, "A candidate": candidate}


def listed(title: str) -> list[str]:
    """The modules in the section of docs/architecture.md that begins with `title`."""
    text = (REPO / "docs/architecture.md").read_text("utf-8")
    section = next(part for part in text.split("\n## ") if part.startswith(title))
    return re.findall(r"`([\w/]+\.py)`", section)


@pytest.mark.slow
@pytest.mark.parametrize("title", ["A clip", "A candidate"])
def test_the_modules_passed_are_those_listed(passed, title):
    assert sorted(passed[title]) == sorted(set(listed(title)))
