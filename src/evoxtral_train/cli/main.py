"""The commands. Each parses its arguments, calls one stage and prints the report; no logic here."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import running
from .commands import COMMANDS
from .running import (
    ConfigArgument,
    DryRunOption,
    OverwriteOption,
    ResumeOption,
    SetOption,
    guarded,
    options_of,
    own_process,
    run_stage,
    show,
)

_IN_ORDER_OF_USE = (
    "init", "data", "sft", "raft", "eval", "eval-predictions", "compare", "probe", "diagnose", "calibrate", "transcribe", "serve",
    "export", "cache", "doctor", "tiny-base",
)  # fmt: skip


class _InOrderOfUse(TyperGroup):
    """By default Typer lists groups after all commands."""

    def list_commands(self, ctx) -> list[str]:
        return sorted(self.commands, key=_IN_ORDER_OF_USE.index)


class _App(typer.Typer):
    def __call__(self, *arguments, **named):
        with own_process():
            return super().__call__(*arguments, **named)


app = _App(cls=_InOrderOfUse, no_args_is_help=True, help="Teach Voxtral Realtime to hear how something was said.")
data = typer.Typer(no_args_is_help=True, help="Make, check and pack a dataset.")
raft = typer.Typer(no_args_is_help=True, help="Generate, score, curate, train: RAFT from an adapter.")
app.add_typer(data, name="data")
app.add_typer(raft, name="raft")
cache = typer.Typer(no_args_is_help=True, help="List and remove audio caches.")
app.add_typer(cache, name="cache")


def _print_version(requested: bool) -> None:
    if requested:
        from importlib import metadata

        print(f"evoxtral {metadata.version('evoxtral')}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it and exit")] = False,
) -> None:
    running.debug = debug


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="target folder; default: the current one")] = Path(),
    tiny: Annotated[bool, typer.Option("--tiny", help="a small project on the tiny base, for a laptop")] = False,
) -> None:
    """Copy the commented configs, the tag table and the grammar into a folder; never replaces a file."""
    from ..stages import init as stage

    show(guarded(lambda: stage.run_tiny(folder) if tiny else stage.run(folder)))


def _add(name: str) -> None:
    """Add a command that takes a config, --set, --resume, --overwrite and --dry-run."""

    @_group_of(name).command(name.split()[-1], help=COMMANDS[name].help)
    def command(
        config: ConfigArgument,
        set_: SetOption = None,
        resume: ResumeOption = False,
        overwrite: OverwriteOption = False,
        dry_run: DryRunOption = False,
    ) -> None:
        run_stage(name, config, set_, options_of(resume, overwrite, dry_run))


def _add_raft_step(name: str) -> None:
    """Like `_add`, plus --round."""

    @_group_of(name).command(name.split()[-1], help=COMMANDS[name].help)
    def command(
        config: ConfigArgument,
        round_: Annotated[int, typer.Option("--round", min=1, help="which round of the config")] = 1,
        set_: SetOption = None,
        resume: ResumeOption = False,
        overwrite: OverwriteOption = False,
        dry_run: DryRunOption = False,
    ) -> None:
        def round_of(whole):
            from ..stages.raft.rounds import RaftRound

            return RaftRound.of(whole, round_)

        run_stage(name, config, set_, options_of(resume, overwrite, dry_run), round_of)


def _group_of(name: str) -> typer.Typer:
    return {"data": data, "raft": raft}[name.split()[0]] if " " in name else app


_add("data import")


@data.command("synth")
def synth(
    config: ConfigArgument,
    engine: Annotated[str | None, typer.Option(help="espeak or elevenlabs; overrides the config")] = None,
    set_: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Speak tagged scripts, with espeak-ng or ElevenLabs, into audio and a manifest."""
    overrides = [*(set_ or []), *([f"engine={engine}"] if engine else [])]
    run_stage("data synth", config, overrides, options_of(resume, overwrite, dry_run))


@data.command("join")
def join(
    manifests: Annotated[list[Path], typer.Argument(help="two or more manifests")],
    output: Annotated[Path, typer.Option(help="the manifest to write")],
) -> None:
    """Join manifests, such as labelled clips and recordings without text; audio files stay where they are."""
    from ..stages.data import join as stage

    show(guarded(lambda: stage.run(manifests, output)))


@data.command("check")
def check(
    config: ConfigArgument,
    set_: SetOption = None,
    findings: Annotated[Path | None, typer.Option(help="write every finding to this JSONL")] = None,
) -> None:
    """Find rows that packing would reject or that would train badly; exits with 1 if there are any."""
    run_stage("data check", config, set_, findings)


for _name in ("data stats", "data align", "data pack", "sft"):
    _add(_name)
for _name in ("raft generate", "raft score", "raft curate", "raft train"):
    _add_raft_step(_name)
_add("raft run")
_add_raft_step("raft pairs")
for _name in ("eval", "probe", "diagnose", "calibrate", "export", "tiny-base"):
    _add(_name)


@app.command("transcribe", help=COMMANDS["transcribe"].help)
def transcribe(
    recordings: Annotated[list[str] | None, typer.Argument(help="files, folders and globs", show_default=False)] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="run or PEFT folder whose tags to write; repeatable")] = None,
    base: Annotated[str | None, typer.Option(help="hub id or folder; default: the base that the adapter names")] = None,
    language: Annotated[str | None, typer.Option(help="such as en; default: the model finds it")] = None,
    format_: Annotated[str | None, typer.Option("--format", help="files to write: txt,json,srt,vtt,tsv")] = None,
    output: Annotated[Path | None, typer.Option(help="folder for the files; default: print the text")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML config for the rest, such as configs/transcribe.yaml")] = None,
    set_: SetOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    formats = None if format_ is None else [name.strip() for name in format_.split(",")]
    named = {
        "recordings": recordings or None, "adapters": adapter or None, "model.base": base, "language": language,
        "formats": formats, "output": None if output is None else str(output),
    }  # fmt: skip
    run_stage("transcribe", config, [*_as_overrides(named), *(set_ or [])], options_of(resume, overwrite, dry_run))


@app.command("serve", help=COMMANDS["serve"].help)
def serve(
    config: Annotated[Path | None, typer.Argument(help="YAML config, such as configs/serve.yaml", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="hub id or folder; default: the base that the adapter names")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="run or PEFT folder whose tags to write; repeatable")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on; default: this machine only")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port; 0: any free one")] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    named = {"model.base": base, "adapters": adapter or None, "listen.host": host, "listen.port": port}
    run_stage("serve", config, [*_as_overrides(named), *(set_ or [])], options_of(False, False, dry_run))


def _as_overrides(named: dict[str, Any]) -> list[str]:
    """{"model.base": "x"} -> ['model.base="x"']; None is left out."""
    import yaml

    quoted = {"default_style": '"', "default_flow_style": True, "width": float("inf")}
    return [f"{key}={yaml.safe_dump(value, **quoted).rstrip()}" for key, value in named.items() if value is not None]


@app.command("eval-predictions")
def eval_predictions(
    file: Annotated[Path, typer.Argument(help="JSONL of {id, reference, prediction}", show_default=False)],
    bootstrap_samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="bootstrap resamples for the intervals")] = 2000,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="bootstrap seed")] = 0,
    unit: Annotated[str, typer.Option(help="resampling unit of the intervals: clip or speaker")] = "clip",
) -> None:
    """Score a file of predictions without a model; prints the metrics as JSON."""
    import json

    def work() -> dict:
        from ..config.evaluation import Bootstrap
        from ..errors import UsageError
        from ..stages import eval_predictions as predictions

        if unit not in ("clip", "speaker"):
            raise UsageError(f"--unit {unit!r} is not known", fix="use clip or speaker")
        return predictions.run(file, Bootstrap(samples=bootstrap_samples, seed=seed, unit=unit))

    print(json.dumps(guarded(work), indent=2, ensure_ascii=False))


@app.command("compare")
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of `evoxtral eval`", show_default=False)],
    output: Annotated[Path | None, typer.Option(help="write OUTPUT.json, OUTPUT.md and OUTPUT.html")] = None,
) -> None:
    """Put the systems of several evaluations into one table."""
    from ..stages import compare as stage

    show(guarded(lambda: stage.run(runs, output)))


_Folders = Annotated[list[Path], typer.Argument(help="packed datasets, or folders that contain some", show_default=False)]


@cache.command("list")
def cache_list(folders: _Folders) -> None:
    """List caches: size, what each was made for, and whether it is still valid."""
    from ..stages import cache as stage

    show(guarded(lambda: stage.listing(folders)))


@cache.command("remove")
def cache_remove(
    folders: _Folders,
    all_: Annotated[bool, typer.Option("--all", help="remove valid caches too; they are rebuilt when needed")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove caches that are no longer valid."""
    from ..stages import cache as stage

    def confirmed(question: str) -> bool:
        try:
            return yes or typer.confirm(question)
        except typer.Abort:  # no terminal to answer from
            return False

    show(guarded(lambda: stage.remove(folders, all_, confirmed)))


@app.command("doctor")
def doctor() -> None:
    """Check versions, devices, tokens and keys; show what will not work, and why."""
    from ..stages import doctor as stage

    show(guarded(stage.run))
