"""Replicas of the server with Ray Serve. docs/serving.md says how to start it, and what was tested.

    EVOXTRAL_CONFIG      YAML config of `evoxtral serve`; default: configs/serve.yaml
    EVOXTRAL_SET         overrides as for --set, separated by spaces: "model.base=data/tiny-base adapters=[data/tiny-tagger]"
    EVOXTRAL_GPUS        GPUs of each replica; default: 1. 0: on the CPU
    EVOXTRAL_REPLICAS    how many; default: 1
"""

import os
from pathlib import Path

from ray import serve

from evoxtral_train.config.loader import load_config
from evoxtral_train.config.serving import ServeConfig

_STREAMS = 256  # requests of a replica at a time, streams among them; the engine refuses what is too much


def _config() -> ServeConfig:
    path = Path(os.environ.get("EVOXTRAL_CONFIG", "configs/serve.yaml"))
    return load_config(path.resolve(), ServeConfig, os.environ.get("EVOXTRAL_SET", "").split())


def build():
    """Runs once in each replica: loads the weights and returns the web application."""
    from evoxtral_train.serving.app import create_app
    from evoxtral_train.serving.engine import Engine

    engine = Engine(_config())
    engine.start()
    return create_app(engine)


app = serve.deployment(
    serve.ingress(build)(),
    name="evoxtral",
    num_replicas=int(os.environ.get("EVOXTRAL_REPLICAS", "1")),
    ray_actor_options={"num_gpus": float(os.environ.get("EVOXTRAL_GPUS", "1"))},
    max_ongoing_requests=_STREAMS,
    graceful_shutdown_timeout_s=_config().limits.drain_s,
).bind()
