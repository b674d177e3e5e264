"""Run directories: what a stage was asked, what it was made from, and whether it finished.

    config.yaml     the resolved config
    run.json        stage, versions, git commit, inputs and their fingerprints, seed
    metrics.json    what was measured
    complete.json   written last; without it nothing in the folder counts as finished

A finished run is not overwritten without `--overwrite`; an unfinished one goes on with
`--resume`, and only with the config and the inputs that it was started with.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from . import shipped
from .errors import EvoxtralError, UsageError
from .records import dump_row

_PACKAGES = ("evoxtral", "torch", "transformers", "peft", "accelerate", "datasets", "mistral-common", "jiwer", "numpy")
_COMPLETE = "complete.json"
_BEGINNINGS = {"config.yaml", ".config.yaml.part", ".run.json.part"}  # all that a kill at the very start leaves
_HARMLESS = {
    "tracking",
    "device",
    "batch_tokens",
    "compile",
    "audio_cache",
    "processes",
}  # Settings that do not change a run's result
_HARMLESS = {
    "tracking", "device", "batch_tokens", "compile", "audio_cache", "processes", "max_characters", "usd_per_1000_characters",
    "concurrent_requests", "max_retries", "timeout_s", "paid_audio", "base_url",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What every stage takes beside its config."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Run:
    """An open run directory. `resumed` tells whether earlier work in it goes on."""

    path: Path
    stage: str
    resumed: bool

    @classmethod
    def open(cls, path: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options) -> "Run":
        """`config`: what the stage was asked, as it is written to YAML. `inputs`: name -> fingerprint of
        everything that it reads. Raises UsageError when the folder holds a finished run, an
        unfinished one without `--resume`, or anything that is not a run of this stage."""
        check_output(path, stage, config, inputs, options)
        resumed = path.is_dir() and options.resume and (path / "run.json").is_file()
        if path.is_dir() and options.overwrite and not resumed:
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        run = cls(path, stage, resumed)
        if not resumed:
            run.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False))
            run.write_json("run.json", {"stage": stage, "inputs": inputs, **provenance()})
        return run

    def write_text(self, name: str, text: str) -> None:
        write_atomic(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        write_atomic(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_rows(self, name: str, rows: Iterable[Any]) -> None:
        """One after the other: `rows` may be more than memory holds."""
        with _atomic(self.path / name) as file:
            for row in rows:
                file.write(dump_row(row).encode("utf-8"))

    def finish(self, metrics: dict[str, Any], fingerprint: str) -> None:
        """`fingerprint` identifies the run's result; later stages compare it."""
        self.write_json("metrics.json", metrics)
        self.write_json(_COMPLETE, {"stage": self.stage, "fingerprint": fingerprint})


def check_output(path: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options) -> None:
    """The refusals of `Run.open`, without touching anything (also part of every dry run)."""
    if path.exists() and not path.is_dir():
        raise UsageError("is a file, not a folder", where=str(path), fix="choose another `output`")
    if not path.is_dir() or {each.name for each in path.iterdir()} <= _BEGINNINGS:
        return
    if not (path / "run.json").is_file():
        raise UsageError("holds files that no run wrote", where=str(path), fix="choose another `output`")
    earlier = json.loads((path / "run.json").read_text("utf-8"))
    if earlier["stage"] != stage:
        raise UsageError(f"holds a run of `{earlier['stage']}`", where=str(path), fix="choose another `output`")
    if options.overwrite:
        return
    if is_complete(path):
        raise UsageError("this run is finished", where=str(path), fix="use --overwrite to do it again, or another `output`")
    if not options.resume:
        raise UsageError("an unfinished run is here", where=str(path), fix="use --resume to go on, or --overwrite")
    changed = _changed_keys(yaml.safe_load((path / "config.yaml").read_text("utf-8")), config)
    changed += [f"input {name}" for name in {*earlier["inputs"], *inputs} if earlier["inputs"].get(name) != inputs.get(name)]
    if changed:
        raise UsageError(
            f"cannot resume: changed since this run began: {', '.join(sorted(changed))}",
            where=str(path),
            fix="put them back, or use --overwrite",
        )


def check_plan(path: Path, stage: str, config: dict[str, Any], options: Options) -> None:
    """`check_output` for a dry run whose inputs may not exist yet: what can be refused without them."""
    if not options.resume:
        check_output(path, stage, config, {}, options)


def is_complete(path: Path) -> bool:
    return (path / _COMPLETE).is_file()


def require_complete(path: Path, stage: str, hint: str) -> str:
    """The fingerprint of a finished run of `stage` at `path`. `hint`: the command that makes one."""
    if not is_complete(path):
        state = "is not finished" if (path / "run.json").is_file() else "does not exist"
        fix = f"finish it with: {hint} --resume" if state == "is not finished" else f"first run: {hint}"
        raise UsageError(f"the input of this stage {state}", where=str(path), fix=fix)
    found = json.loads((path / _COMPLETE).read_text("utf-8"))
    if found["stage"] != stage:
        raise UsageError(f"holds a run of `{found['stage']}`, not of `{stage}`", where=str(path), fix=f"first run: {hint}")
    return found["fingerprint"]


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    try:
        return json.loads((path / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError("is not a run directory (no run.json)", where=str(path)) from None


def require_same_input(path: Path, name: str, fingerprint: str, now: str) -> None:
    """Refuse when the run at `path` was made from another `name` than the one at hand (`now`, its path)."""
    recorded = read_run(path)["inputs"].get(name)
    if recorded != fingerprint:
        raise UsageError(
            f"was made from another {name} than {now} ({recorded} there, {fingerprint} now)",
            where=str(path),
            fix="make it again from this one, or point the config at the right one",
        )


def require_same_config(path: Path, config: dict[str, Any], sections: Iterable[str]) -> None:
    """Refuse when one of `sections` of the config differs from what the run at `path` was asked."""
    earlier = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
    changed = [key for name in sections for key in _changed_keys(earlier.get(name), config.get(name), name)]
    if changed:
        raise UsageError(
            f"was made with another config: {', '.join(changed)} differ",
            where=str(path),
            fix="make it again with --overwrite, or put the config back",
        )


def provenance() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions, "python": platform.python_version(), "git_commit": _git_commit()}


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits over the names and the contents of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write_atomic(path: Path, content: str | bytes) -> None:
    """The whole file or none of it: written beside, synced, then renamed."""
    with _atomic(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with disk_errors(path), temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def disk_errors(path: Path):
    """Turn a full disk or a forbidden folder into an error that says which file and what to do."""
    try:
        yield
    except OSError as error:
        raise EvoxtralError(
            f"could not be written: {error.strerror or error}",
            where=str(path),
            fix="free some space or choose another `output`, then go on with --resume",
        ) from error


def _git_commit() -> str | None:
    """The commit of this clone; an installed package has none, and may lie in a repository of its user's."""
    if not shipped.is_checkout():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _changed_keys(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {*before, *after} - _HARMLESS]
        return [line for key in keys for line in _changed_keys(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [path]
