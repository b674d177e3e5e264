"""Run directories: a stage's config, its inputs, and whether it finished.

    runs/sft            a finished run; a folder of this name is never incomplete
      config.yaml       the resolved config
      run.json          stage, versions, git commit, fingerprints of the inputs
      metrics.json      what was measured
      files.txt         every file that the run wrote
      complete.json     the completion marker, written last, with the fingerprint of the result
    runs/sft.partial    the run in progress; `finish` renames it
    runs/.sft.lock      held by the process that makes it

`--resume` continues an unfinished run; its config and inputs must be unchanged. `--overwrite` makes the new run beside the
finished one and swaps them at the end. It removes only what the old run's `files.txt` lists; everything else in the old folder
moves to the new one. So a run that is refused, fails or is killed leaves the old one untouched.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import shipped
from .errors import EvoxtralError, UsageError
from .files import disk_errors, fingerprint_files, open_atomic, write_atomic
from .reading import read_record
from .records import dump_row
from .run_folders import (
    COMPLETE,
    FILES,
    files_below,
    is_complete,
    lock,
    partial,
    put_in_place,
    real_path,
    recover,
    release,
    remove,
)

_PACKAGES = ("evoxtral", "torch", "transformers", "peft", "accelerate", "datasets", "mistral-common", "jiwer", "numpy")
# Settings that may differ when a run resumes: they do not change its result.
_HARMLESS = {
    "tracking", "device", "batch_tokens", "compile", "audio_cache", "audio_cache_limit_gb", "processes", "max_characters",
    "usd_per_1000_characters", "concurrent_requests", "max_retries", "timeout_s", "paid_audio", "base_url",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What every stage takes besides its config."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Run:
    """An open run. `path`: where its files are written until `finish` moves the folder to `output`. `resumed`: whether it
    continues earlier work."""

    output: Path
    path: Path
    stage: str
    resumed: bool

    @classmethod
    def open(
        cls, output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options,
        sources: Iterable[Path | str | None] = (),
    ) -> "Run":  # fmt: skip
        """Start or resume a run. `config`: the resolved config. `inputs`: name -> fingerprint of everything that the stage
        reads. `sources`: the paths of those inputs.

        Raises UsageError if another process makes this run, or if the output contains a finished run, an unfinished one (without
        `--resume`), anything that is not a run of this stage, or one of `sources`.
        """
        output = real_path(output)
        check_output(output, stage, config, inputs, options, sources)
        lock(output)
        check_output(output, stage, config, inputs, options, sources)  # again: another process may have finished meanwhile
        path = partial(output)
        resumed = options.resume and (path / "run.json").is_file()
        if not resumed and path.is_dir():
            remove(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(output, path, stage, resumed)
        if not resumed:
            run.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            run.write_json("run.json", {"stage": stage, "inputs": inputs, **provenance()})
        return run

    def write_text(self, name: str, text: str) -> None:
        write_atomic(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Raises EvoxtralError for a number that is not finite."""
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise EvoxtralError("a measured number is not finite", where=str(self.path / name)) from None
        write_atomic(self.path / name, text + "\n")

    def write_rows(self, name: str, rows: Iterable[Any]) -> None:
        """Write rows one at a time: there may be more than fit in memory."""
        with open_atomic(self.path / name) as file:
            for row in rows:
                file.write(dump_row(row).encode("utf-8"))

    def finish(self, metrics: dict[str, Any], fingerprint: str) -> None:
        """Mark the run as finished and move it to its output. `fingerprint` identifies the result; later stages compare it.
        Call this only when nothing writes to the folder any more, not even the tracker."""
        self.write_json("metrics.json", metrics)
        self.write_text(FILES, "".join(f"{name}\n" for name in sorted({*files_below(self.path), FILES, COMPLETE})))
        self.write_json(COMPLETE, {"stage": self.stage, "fingerprint": fingerprint})
        with disk_errors(self.output):
            put_in_place(self.output)
        release(self.output)


def check_output(
    output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options,
    sources: Iterable[Path | str | None] = (),
) -> None:  # fmt: skip
    """The checks of `Run.open`, without creating anything (also part of every dry run)."""
    where, output = str(output), real_path(output)
    if output.exists() and not output.is_dir():
        raise UsageError("is a file, not a folder", where=where, fix="choose another `output`")
    if Path.cwd().is_relative_to(output) or os.path.ismount(output):
        what = "the current folder, or one above it" if Path.cwd().is_relative_to(output) else "a mount point"
        raise UsageError(f"is {what}, which cannot be replaced", where=where, fix="choose a folder inside it as `output`")
    for source in sources:
        if source is not None and Path(source).exists() and real_path(Path(source)).is_relative_to(output):
            what = f"the output contains an input of this stage: {source}"
            raise UsageError(what, where=where, fix="choose another `output`")
    recover(output)
    if output.is_dir() and any(output.iterdir()):
        if not is_complete(output):
            raise UsageError("contains files that are not from a finished run", where=where, fix="choose another `output`")
        _require_stage(output, stage, where)
        if not options.overwrite and not (options.resume and (partial(output) / "run.json").is_file()):
            raise UsageError("this run is finished", where=where, fix="use --overwrite to repeat it, or another `output`")
    _check_partial(output, stage, config, inputs, options)


def _check_partial(output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options) -> None:
    path = partial(output)
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "run.json").is_file():
        if {file.name for file in path.iterdir()} <= {"config.yaml", ".config.yaml.part", ".run.json.part"}:
            return  # left by a kill at the very start
        fix = "move it away, or choose another `output`"
        raise UsageError("contains files that are not from a run", where=str(path), fix=fix)
    earlier = _require_stage(path, stage, str(path))
    if options.overwrite:
        return
    if not options.resume:
        raise UsageError("there is an unfinished run here", where=str(path), fix="use --resume to continue it, or --overwrite")
    _require_unchanged(path, _changed_keys(read_record(path / "config.yaml"), config) + _changed_inputs(earlier, inputs))


def require_same_inputs(path: Path, inputs: dict[str, str]) -> None:
    """Refuse to continue the run at `path` if it was made from other inputs: name -> fingerprint."""
    _require_unchanged(path, _changed_inputs(read_run(path), inputs))


def _changed_inputs(earlier: dict[str, Any], inputs: dict[str, str]) -> list[str]:
    return [f"input {name}" for name in {*earlier["inputs"], *inputs} if earlier["inputs"].get(name) != inputs.get(name)]


def _require_unchanged(path: Path, changed: list[str]) -> None:
    if changed:
        raise UsageError(
            f"cannot resume: changed since this run began: {', '.join(sorted(changed))}",
            where=str(path),
            fix="change them back, or use --overwrite",
        )


def _require_stage(path: Path, stage: str, where: str) -> dict[str, Any]:
    record = read_run(path)
    if record["stage"] != stage:
        raise UsageError(f"contains a run of `{record['stage']}`", where=where, fix="choose another `output`")
    return record


def check_plan(path: Path, stage: str, config: dict[str, Any], options: Options) -> None:
    """`check_output` for a dry run whose inputs may not exist yet: only the checks that do not need them."""
    if not options.resume:
        check_output(path, stage, config, {}, options)


def require_complete(path: Path, stage: str, hint: str) -> str:
    """The fingerprint of the finished run of `stage` at `path`. `hint`: the command that makes one."""
    recover(real_path(path))
    if not is_complete(path):
        begun = partial(real_path(path)).is_dir()
        fix = f"finish it with: {hint} --resume" if begun else f"first run: {hint}"
        raise UsageError(f"the input of this stage {'is not finished' if begun else 'does not exist'}", where=str(path), fix=fix)
    marker = read_record(path / COMPLETE)
    if marker["stage"] != stage:
        raise UsageError(f"contains a run of `{marker['stage']}`, not of `{stage}`", where=str(path), fix=f"first run: {hint}")
    return marker["fingerprint"]


def require_unedited(folder: Path, files: Iterable[Path], fingerprint: str) -> None:
    """Refuse the run in `folder` when `files`, which its fingerprint is of, do not have it any more."""
    files = list(files)
    if not all(path.is_file() for path in files) or fingerprint_files(files) != fingerprint:
        what = f"was edited after it was made: {', '.join(path.name for path in files)}"
        raise UsageError(what, where=str(folder), fix="put back what the run wrote, or do that run again with --overwrite")


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    if not (path / "run.json").is_file():
        raise UsageError("is not a run directory (no run.json)", where=str(path))
    return read_record(path / "run.json")


def require_same_input(path: Path, name: str, fingerprint: str, now: str) -> None:
    """Refuse if the run at `path` was made from another `name` than the current one, which is at `now`."""
    recorded = read_run(path)["inputs"].get(name)
    if recorded != fingerprint:
        raise UsageError(
            f"was made from another {name} than {now} (fingerprint {recorded} then, {fingerprint} now)",
            where=str(path),
            fix="make it again from this one, or name the right one in the config",
        )


def require_same_config(path: Path, config: dict[str, Any], sections: Iterable[str]) -> None:
    """Refuse if one of `sections` differs between the config and that of the run at `path`."""
    earlier = read_record(path / "config.yaml")
    changed = [key for name in sections for key in _changed_keys(earlier.get(name), config.get(name), name)]
    if changed:
        raise UsageError(
            f"was made with another config, which differs in: {', '.join(changed)}",
            where=str(path),
            fix="make it again with --overwrite, or change the config back",
        )


def provenance() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions, "python": platform.python_version(), "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of this clone. None for an installed package, which may be inside the user's own repository."""
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
