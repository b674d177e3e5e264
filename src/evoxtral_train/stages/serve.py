"""`evoxtral serve`: words and tags while people speak."""

import importlib
import os

from ..config.serving import ServeConfig
from ..errors import UsageError
from ..runs import Options
from ..transcription.transcriber import Transcriber
from .report import Report, gigabytes

_EXTRA = ("fastapi", "uvicorn", "websockets", "python_multipart", "prometheus_client")


def run(config: ServeConfig, options: Options) -> Report:
    """Serves until the process is told to end (SIGTERM, Ctrl-C). Raises UsageError without the extra `serve`."""
    if options.dry_run:
        return _plan(config)
    _require_extra()
    from ..serving.engine import Engine
    from ..serving.server import run as run_server

    run_server(Engine(config), config)  # which loads the weights when it has its address
    return Report("serve: stopped")


def _plan(config: ServeConfig) -> Report:
    from ..serving.engine import Engine
    from .plans import plan_model  # it imports the Trainer, which takes seconds

    engine = Engine(config)
    transcriber = engine.transcriber
    facts = {"base": transcriber.model.base} | _adapters(config, transcriber)
    facts["rows"] = config.live.rows if transcriber.adapters else "base: there is no adapter"
    facts |= plan_model(transcriber.model)
    if engine.has_streams:
        stream_bytes, slots = engine.plan()
        facts["memory"] = f"{gigabytes(stream_bytes)} per stream"
        facts["streams"] = f"{slots} at a time" + ("" if config.live.streams else ", with the memory that is free now")
    else:
        facts["streams"] = "none: this model hears a whole recording before it writes"
    listen = config.listen
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    facts["address"] = f"http://{host}:{listen.port}" if listen.port else f"http://{host}, any free port"
    has_key = bool(listen.api_key or os.environ.get("EVOXTRAL_API_KEY"))
    facts["API key"] = "required" if has_key else "none: whoever reaches this address may use the server"
    return Report("plan: serve", facts)


def _adapters(config: ServeConfig, transcriber: Transcriber) -> dict[str, str]:
    """When the tags of each adapter come."""
    late = "tags when an utterance has ended" if transcriber.base.family.writes_while_listening else "tags of whole segments"
    when = {True: "tags while people speak", False: late}
    rows = zip(config.adapters, transcriber.rows[1:], strict=True)
    return {f"adapter {path}": f"layout {row.layout.name}: {when[row.layout.has_times]}" for path, row in rows}


def _require_extra() -> None:
    for name in _EXTRA:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UsageError(f"{name} is not installed", fix="run: pip install 'evoxtral[serve]'") from None
