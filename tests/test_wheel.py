"""Installed, not cloned: a wheel in an environment of its own, in an empty folder, runs the pipeline.

`make test` lends that environment the other packages of this one; `make test-wheel` installs everything anew, from the
package index.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from conftest import REPO

ANEW = bool(os.environ.get("EVOXTRAL_TEST_WHEEL_ANEW"))
HERE = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}  # what would let the clone shine through
SMALL = {
    "synth": ["clips.train=16", "clips.validation=4", "clips.test=4", "clips.raft=0"],
    "sft": ["train.epochs=1", "train.batch_size=8", "train.warmup_steps=1"],
    "eval-sft": ["systems.0.name=untrained", "decode.max_new_tokens=8", "bootstrap.samples=20", "bootstrap.permutations=199"],
}


def run(*command, **more) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in HERE}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def environment(tmp_path) -> Path:
    """An environment with evoxtral from a wheel of this clone; returns its folder of programs."""
    pip, build = [sys.executable, "-m", "pip", "--quiet"], ["wheel", "--no-deps", "--wheel-dir", tmp_path, REPO]
    run(*pip, *build, *([] if ANEW else ["--no-build-isolation"]))
    [wheel] = tmp_path.glob("*.whl")
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=ANEW, symlinks=True)
    python = folder / "bin" / "python"
    if ANEW:
        run(python, "-m", "pip", "--quiet", "install", "-c", REPO / "constraints.txt", f"{wheel}[synth]")
    else:
        own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (own / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
        run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    return folder / "bin"


@pytest.mark.slow
def test_init_synth_pack_sft_and_eval_in_an_empty_folder(environment, tmp_path):
    project = tmp_path / "project"
    project.mkdir()

    def evoxtral(*arguments) -> str:
        return run(environment / "evoxtral", *arguments, cwd=project)

    def stage(name: str, config: str) -> None:
        sets = [f"--set={each}" for each in (*SMALL.get(config, ()), "tracking.mode=disabled")]
        evoxtral(*name.split(), f"configs/{config}.yaml", *sets)

    found = Path(run(environment / "python", "-c", "import evoxtral_train as e; print(e.__file__)", cwd=project).strip())
    assert found.is_relative_to(environment.parent)
    assert "evoxtral data synth configs/synth.yaml" in evoxtral("init", "--tiny", ".")
    shutil.rmtree(project / "data")  # tags and grammar too are then those of the wheel
    stage("data synth", "synth")
    stage("data pack", "pack")
    stage("sft", "sft")
    stage("eval", "eval-sft")
    metrics = json.loads((project / "runs/eval-sft/metrics.json").read_text("utf-8"))
    assert {"untrained", "SFT"} <= set(metrics["systems"])
    assert metrics["systems"]["SFT"]["clips"] == 4
    assert (project / "runs/eval-sft/report.html").stat().st_size > 10_000
    record = json.loads((project / "runs/sft/run.json").read_text("utf-8"))
    assert (record["versions"]["evoxtral"], record["git_commit"]) == (evoxtral("--version").split()[1], None)
    assert f"installed; configs, tags and the tiny base in {found.parent / 'shipped'}" in evoxtral("doctor")
