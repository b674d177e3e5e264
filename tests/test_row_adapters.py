"""Several adapters on one set of weights: each row writes what its own adapter writes alone, and the base stays the base."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from conftest import load_tiny
from evoxtral_train.errors import UsageError
from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.modeling.row_adapters import RowAdapters

TARGETS = r".*language_model.*self_attn\.(q|k|v|o)_proj"
IDS = torch.tensor([[1, 32, 32, 700, 900]])


def _adapter(folder, seed: int, **lora):
    """A random adapter on the tiny base, saved in PEFT's format."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": False} | lora
    get_peft_model(load_tiny().model, LoraConfig(**settings)).save_pretrained(folder)
    return find_adapter(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two, of different rank, scale and modules."""
    root = tmp_path_factory.mktemp("adapters")
    return [
        _adapter(root / "first", 1),
        _adapter(root / "second", 2, r=3, use_rslora=True, target_modules=r".*language_model.*(q_proj|gate_proj)"),
    ]


def _logits(network, ids=IDS):
    audio = torch.zeros(*ids.shape, network.text_config.hidden_size)
    with torch.inference_mode():
        return network.logits(network.hidden(ids, audio))


def test_each_row_has_its_own_adapters_logits_and_the_bases_are_bit_equal(adapters):
    alone = [_logits(load_tiny()), *(_logits(load_adapter(load_tiny(), adapter)) for adapter in adapters)]
    network = load_tiny()
    rows = RowAdapters(network, adapters)
    assert torch.equal(_logits(network), alone[0])
    order = [2, 0, 1, 1, 0]
    rows.use(torch.tensor(order))
    together = _logits(network, IDS.expand(5, -1))
    for place, number in enumerate(order):
        torch.testing.assert_close(together[place], alone[number][0], atol=2e-5, rtol=0)
    assert (alone[1] - alone[0]).abs().max() > 0.1 and (alone[2] - alone[0]).abs().max() > 0.1  # they do change the model
    rows.use(torch.zeros(1, dtype=torch.int64))
    assert torch.equal(_logits(network), alone[0])


def test_the_base_keeps_its_weights_and_no_second_copy_is_made(adapters):
    network, before = load_tiny(), load_tiny().model.state_dict()
    pointers = {parameter.data_ptr() for parameter in network.model.parameters()}
    RowAdapters(network, adapters)
    after = {name.replace(".base.", "."): tensor for name, tensor in network.model.state_dict().items()}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert {parameter.data_ptr() for parameter in network.model.parameters()} == pointers


def test_the_cards_quick_start_changes_its_base_and_ours_does_not(adapters):
    """`PeftModel.from_pretrained(base, …)` changes `base` in place: what the card then calls the base is the adapter."""
    theirs = load_tiny()
    base_logits = _logits(theirs)
    load_adapter(theirs, adapters[0])
    assert not torch.allclose(_logits(theirs), base_logits, atol=0.1)


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ({"target_modules": r".*audio_tower.*q_proj"}, "changes the audio path"),
        ({"use_dora": True}, "more than plain LoRA"),
    ],
)
def test_an_adapter_that_rows_cannot_share_is_refused(tmp_path, lora, problem):
    with pytest.raises(UsageError, match=problem):
        RowAdapters(load_tiny(), [_adapter(tmp_path / "adapter", 3, **lora)])
