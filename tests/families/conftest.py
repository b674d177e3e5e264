"""The battery that every model family passes. A new family adds a `Subject`; a test refuses one that is missing.

A `Subject` is the family as transformers knows it: a small checkpoint, the stock class, and what its forward takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, VoxtralForConditionalGeneration, VoxtralRealtimeForConditionalGeneration

from conftest import TINY_BASE, TINY_OFFLINE_BASE
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Lora
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.families.checkpoint import open_family
from evoxtral_train.families.offline.model import chunked
from evoxtral_train.modeling.adapters import add_lora


@dataclass(frozen=True)
class Subject:
    """`inputs(split, index, tokens)`: what the stock forward takes beside `input_ids` for the first tokens of a clip's row.
    `layouts`: those that are packed for the battery, the cheapest first. `split`: whose clips it takes; a chunk of 30 s costs
    more."""

    checkpoint: Path
    stock_class: type[PreTrainedModel]
    inputs: Callable[[PackedSplit, int, int], dict]
    layouts: tuple[str, ...]
    split: str = "train"

    def stock(self) -> PreTrainedModel:
        return self.stock_class.from_pretrained(self.checkpoint, dtype=torch.float32).eval().requires_grad_(False)

    @property
    def model_config(self) -> Model:
        return Model(base=str(self.checkpoint), dtype="float32", device="cpu")


def realtime_inputs(split: PackedSplit, index: int, tokens: int) -> dict:
    return {"input_features": torch.from_numpy(split.mel_of(index, tokens))[None], "num_delay_tokens": 6}


def offline_inputs(split: PackedSplit, index: int, tokens: int) -> dict:
    return {"input_features": chunked([torch.from_numpy(split.mel_of(index, tokens))])}


SUBJECTS = {
    "voxtral": Subject(
        TINY_OFFLINE_BASE, VoxtralForConditionalGeneration, offline_inputs, ("transcription_request",), "validation"
    ),
    "voxtral_realtime": Subject(TINY_BASE, VoxtralRealtimeForConditionalGeneration, realtime_inputs, ("packed", "deferred")),
}


@pytest.fixture(scope="session")
def subject(request) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(scope="session")
def family(subject):
    return open_family(subject.checkpoint)


@pytest.fixture(scope="session")
def network(family):
    """The checkpoint in float32, frozen. Tests must not change it."""
    return family.load("float32")


LAYOUTS = [(name, layout) for name, subject in SUBJECTS.items() for layout in subject.layouts]


def pytest_generate_tests(metafunc):
    """Every test runs for each family, and one that takes a split in each of its layouts."""
    if "split" not in metafunc.fixturenames:
        if "subject" in metafunc.fixturenames:
            metafunc.parametrize("subject", SUBJECTS, indirect=True)
    else:
        names = [f"{name}-{layout}" for name, layout in LAYOUTS]
        metafunc.parametrize(("subject", "split"), [(name, layout) for name, layout in LAYOUTS], indirect=True, ids=names)


@pytest.fixture(scope="session")
def split(subject, packed, request) -> PackedSplit:
    """A few clips, packed in one of the family's layouts."""
    return PackedSplit(packed[request.param], subject.split)


@pytest.fixture(scope="session")
def stock(subject, network):
    """Transformers' own class: {with the adapter of `adapted` or not: model}."""
    return {False: subject.stock(), True: with_random_adapter(network.around(subject.stock()), subject).model}


@pytest.fixture(scope="session")
def adapted(subject, family):
    """With an adapter of random weights, far from zero, so that it writes other tokens."""
    return with_random_adapter(family.load("float32"), subject)


def with_random_adapter(network, subject: Subject, spread: float = 0.3, lora: Lora | None = None):
    torch.manual_seed(0)
    network = add_lora(network, lora or Lora(), subject.model_config)
    for name, parameter in network.model.eval().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    return network
