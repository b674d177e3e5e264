"""A real server on a free port, in a thread of the test process. conftest.py has the fixture `server`; `serving` makes others."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import REPO, TINY_BASE
from evoxtral_train.config.serving import ServeConfig
from evoxtral_train.serving.engine import Engine
from evoxtral_train.serving.server import Server, address, listener


@dataclass(frozen=True)
class Running:
    """`url`: http://127.0.0.1:PORT. `websocket_url`: the same with ws:."""

    url: str
    engine: Engine
    config: ServeConfig

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http:", "ws:", 1)


def config_of(*adapters: Path, **sections: dict) -> ServeConfig:
    """The tiny base and all tags of the adapters, at any port; `sections`: others of `ServeConfig`."""
    content = {
        "model": {"base": str(TINY_BASE)}, "adapters": adapters, "kept_tags": {"thresholds": False},
        "tags_table": REPO / "data/tags.yaml", "listen": {"port": 0},
    }  # fmt: skip
    return ServeConfig(**content | sections)


@contextmanager
def serving(engine: Engine) -> Iterator[Running]:
    """`engine` is started before, and stopped afterwards, by whoever made it. It is drained when the server ends."""
    config = engine.config
    with listener(config.listen) as listening:
        server = Server(engine, config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield Running(address(config.listen, listening), engine, config)
        finally:
            server.should_exit = True
            thread.join(timeout=60)
            assert not thread.is_alive(), "the server did not end"


@contextmanager
def serving_anew(config: ServeConfig) -> Iterator[Running]:
    """With an engine of its own: it takes seconds."""
    engine = Engine(config)
    engine.start()
    try:
        with serving(engine) as running:
            yield running
    finally:
        engine.stop()


class Configured:
    """A running engine under another config: for limits and access, which handlers read. It is not drained."""

    def __init__(self, engine: Engine, **sections: dict):
        self._engine, self.config = engine, ServeConfig(**engine.config.model_dump() | {"listen": {"port": 0}} | sections)

    def __getattr__(self, name: str):
        return getattr(self._engine, name)

    async def drain(self) -> None:
        """Others use the engine."""
