"""A checkpoint in Mistral's own format: names and order to the letter, the way there and back, what is refused, and its use as a
base. That an engine that is not ours reads it is shown by `benchmarks/other_engine.py`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

from conftest import REPO, TINY_BASE, load_tiny
from evoxtral_train.config.sections import Model
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import EvoxtralError, UsageError
from evoxtral_train.families.checkpoint import base_fingerprint, family_for, open_family, processor_fingerprint, resolve_base
from evoxtral_train.families.realtime.mistral_format import mistral_name, to_halves, to_pairs
from evoxtral_train.modeling.bases import describe_model

ENCODER = "mm_streams_embeddings.embedding_module.whisper_encoder"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The tiny base in Mistral's format, in its own bfloat16. Tests must not change it."""
    folder = tmp_path_factory.mktemp("mistral") / "base"
    network = load_tiny("bfloat16")
    open_family(TINY_BASE).save_mistral(network.model, folder)
    return folder


@pytest.fixture
def base(exported, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported, tmp_path / "base"))


def test_the_published_shape_has_the_published_tensors():
    """Names, shapes and their number as published: 711 tensors in consolidated.safetensors."""
    with torch.device("meta"):
        state = VoxtralRealtimeForConditionalGeneration(VoxtralRealtimeConfig()).state_dict()
    shapes = {mistral_name(name): list(tensor.shape) for name, tensor in state.items() if name != "lm_head.weight"}
    assert len(shapes) == 711
    published = {
        "mm_streams_embeddings.embedding_module.tok_embeddings.weight": [131_072, 3072],
        "mm_streams_embeddings.embedding_module.audio_language_projection.0.weight": [3072, 5120],
        "mm_streams_embeddings.embedding_module.audio_language_projection.2.weight": [3072, 3072],
        f"{ENCODER}.conv_layers.0.conv.weight": [1280, 128, 3],
        f"{ENCODER}.conv_layers.1.conv.bias": [1280],
        f"{ENCODER}.transformer.layers.31.attention.wq.weight": [2048, 1280],
        f"{ENCODER}.transformer.layers.31.attention.wq.bias": [2048],
        f"{ENCODER}.transformer.layers.31.attention.wo.bias": [1280],
        f"{ENCODER}.transformer.layers.31.attention_norm.weight": [1280],
        f"{ENCODER}.transformer.layers.31.feed_forward.w2.bias": [1280],
        f"{ENCODER}.transformer.layers.31.ffn_norm.weight": [1280],
        f"{ENCODER}.transformer.norm.weight": [1280],
        "layers.25.attention.wk.weight": [1024, 3072],
        "layers.25.attention.wo.weight": [3072, 4096],
        "layers.25.attention_norm.weight": [3072],
        "layers.25.feed_forward.w1.weight": [9216, 3072],
        "layers.25.feed_forward.w2.weight": [3072, 9216],
        "layers.25.feed_forward.w3.weight": [9216, 3072],
        "layers.25.ffn_norm.weight": [3072],
        "layers.25.ada_rms_norm_t_cond.0.weight": [32, 3072],
        "layers.25.ada_rms_norm_t_cond.2.weight": [3072, 32],
        "norm.weight": [3072],
    }
    assert {name: shapes.get(name) for name in published} == published
    assert f"{ENCODER}.transformer.layers.31.attention.wk.bias" not in shapes


def test_the_rows_of_a_head_change_from_halves_to_pairs():
    two_heads = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    assert to_pairs(two_heads, 4).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]
    assert to_pairs(two_heads[:, None] * torch.tensor([1, 100]), 4).tolist()[:3] == [[0, 0], [2, 200], [1, 100]]
    for shape in ((64, 3), (64,)):
        tensor = torch.randn(shape)
        assert torch.equal(to_halves(to_pairs(tensor, 32), 32), tensor)


def test_only_q_and_k_are_reordered(exported):
    own, stock = load_file(exported / "consolidated.safetensors"), load_file(TINY_BASE / "model.safetensors")
    assert len(own) == len(stock) == 81
    for stock_part, part, same in (("q", "wq", False), ("k", "wk", False), ("v", "wv", True), ("o", "wo", True)):
        tensor = own[f"layers.1.attention.{part}.weight"]
        assert torch.equal(tensor, stock[f"language_model.model.layers.1.self_attn.{stock_part}_proj.weight"]) is same
    bias = own[f"{ENCODER}.transformer.layers.0.attention.wq.bias"]
    assert bias[:4].tolist() == stock["audio_tower.layers.0.self_attn.q_proj.bias"][[0, 16, 1, 17]].tolist()
    assert {tensor.dtype for tensor in own.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_there_and_back_every_bit_is_the_same(dtype, tmp_path):
    network = load_tiny(dtype)
    open_family(TINY_BASE).save_mistral(network.model, tmp_path / "own")
    back = open_family(tmp_path / "own").load(dtype)
    state, expected = back.model.state_dict(), network.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) and state[name].dtype == expected[name].dtype for name in expected)
    for name, buffer in network.model.named_buffers():
        assert torch.equal(back.model.get_buffer(name), buffer), name
    assert back.logits(torch.eye(192, dtype=back.dtype)).equal(network.logits(torch.eye(192, dtype=back.dtype)))
    ignored = {"_name_or_path": None, "architectures": None}
    assert back.model.config.to_dict() | ignored == network.model.config.to_dict() | ignored

    open_family(tmp_path / "own").save(back.model, tmp_path / "stock")
    stock = VoxtralRealtimeForConditionalGeneration.from_pretrained(tmp_path / "stock", dtype=getattr(torch, dtype)).state_dict()
    assert all(torch.equal(stock[name], expected[name]) for name in expected)
    open_family(tmp_path / "stock")


def test_params_hold_the_shape(exported):
    params = json.loads((exported / "params.json").read_text("utf-8"))
    encoder = params.pop("multimodal")["whisper_model_args"]["encoder_args"]
    assert params == {
        "dim": 192, "n_layers": 3, "head_dim": 32, "hidden_dim": 576, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 2540,
        "norm_eps": 1e-05, "rope_theta": 1_000_000.0, "sliding_window": 8192, "model_max_length": 8192, "use_biases": False,
        "causal": True, "model_parallel": 1, "tied_embeddings": True, "ada_rms_norm_t_cond": True, "ada_rms_norm_t_cond_dim": 32,
    }  # fmt: skip
    assert (encoder["dim"], encoder["rope_theta"], encoder["sliding_window"], encoder["causal"]) == (128, 10_000.0, 750, True)
    assert encoder["audio_encoding_args"]["global_log_mel_max"] == 1.5


def test_the_processor_is_the_same_with_and_without_its_settings(base):
    """With the base's own file, a dataset that was packed for the one fits the other; without, `params.json` says the same."""
    family = open_family(TINY_BASE)
    assert processor_fingerprint(base) == processor_fingerprint(TINY_BASE)
    assert base_fingerprint(base) != base_fingerprint(TINY_BASE)
    (base / "preprocessor_config.json").unlink()
    assert sorted(path.name for path in base.iterdir()) == ["consolidated.safetensors", "params.json", "tekken.json"]
    own = open_family(base)
    assert own.processor.feature_extractor.to_dict() == family.processor.feature_extractor.to_dict()
    assert own.clock == family.clock
    assert own.tokenizer.encode("[sighs] I told you.", bos=False, eos=False) == family.tokenizer.encode(
        "[sighs] I told you.", bos=False, eos=False
    )
    assert processor_fingerprint(base) != processor_fingerprint(TINY_BASE)
    network, source = describe_model(Model(base=str(base)))
    assert network.sizes()["parameters"] == 2_691_264
    assert source == "the checkpoint's config"


def test_the_settings_of_a_processor_in_one_file_are_read(base):
    """`processor_config.json`, as transformers 5 saves a processor."""
    family = open_family(TINY_BASE)
    (base / "preprocessor_config.json").unlink()
    family.processor.feature_extractor.global_log_mel_max = 1.25
    family.processor.save_pretrained(base)
    assert (base / "processor_config.json").is_file()
    assert open_family(base).processor.feature_extractor.global_log_mel_max == 1.25


def test_an_untied_head_has_no_place(tmp_path):
    model = load_tiny().model
    model.config.tie_word_embeddings = False
    with pytest.raises(UsageError, match="no place for a head that is not tied"):
        open_family(TINY_BASE).save_mistral(model, tmp_path)


def edit(path: Path, **changes) -> None:
    tensors = load_file(path)
    tensors |= changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "consolidated.safetensors").unlink(), "these weights cannot be read: No such file"),
        (lambda base: (base / "params.json").unlink(), "config.json: cannot be read: FileNotFoundError.* or params.json"),
        (lambda base: (base / "params.json").write_text("{", "utf-8"), "params.json: cannot be read: Expecting property"),
        (lambda base: (base / "params.json").write_text("[]", "utf-8"), "params.json: cannot be read: .* it holds no keys"),
        (lambda base: (base / "tekken.json").unlink(), "its processor cannot be loaded"),
        (lambda base: (base / "consolidated.safetensors").write_bytes(b"x" * 100), "these weights cannot be read"),
        (
            lambda base: edit(base / "consolidated.safetensors", **{"norm.weight": None, "layers.0.ffn_norm.weight": None}),
            r"lacks .* \(and 1 more\) — copy the checkpoint again: its files do not belong together",
        ),
        (
            lambda base: edit(base / "consolidated.safetensors", **{"output.weight": torch.zeros(1)}),
            "holds output.weight, which is no part of Voxtral Realtime",
        ),
        (
            lambda base: edit(base / "consolidated.safetensors", **{"norm.weight": torch.zeros(7)}),
            r"norm.weight has the shape \[7\], params.json says \[192\]",
        ),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused(base, damage, message):
    damage(base)
    with pytest.raises(EvoxtralError, match=message):
        open_family(resolve_base(str(base), None)).load("float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 64}, r"tok_embeddings.weight has the shape \[2540, 192\], params.json says \[2540, 64\]"),
        ({"dim": "wide"}, "params.json: does not describe a model: invalid literal for int"),
        ({"n_layers": None}, "params.json: does not describe a model"),
        ({"n_layers": float("inf")}, "params.json: does not describe a model: cannot convert float infinity"),
        ({"n_kv_heads": 0}, "n_kv_heads must be above 0"),
        ({"head_dim": 31}, "RoPE requires an even rotary dimension"),
        ({"multimodal": {}}, "is a model of type None — use a base of type voxtral_realtime"),
        ({"multimodal": {"whisper_model_args": {"encoder_args": {"causal": False}}}}, "offline Voxtral in Mistral's own format"),
    ],
)
def test_params_that_do_not_fit_are_refused(base, changes, message):
    params = json.loads((base / "params.json").read_text("utf-8"))
    (base / "params.json").write_text(json.dumps(params | changes), "utf-8")
    with pytest.raises(UsageError, match=message):
        open_family(base).load("float32")


def test_a_missing_field_is_named(base):
    params = json.loads((base / "params.json").read_text("utf-8"))
    del params["hidden_dim"]
    (base / "params.json").write_text(json.dumps(params), "utf-8")
    with pytest.raises(UsageError, match="params.json: lacks 'hidden_dim'"):
        describe_model(Model(base=str(base)))


def test_a_folder_with_both_formats_is_read_in_transformers_own(base):
    fingerprint = base_fingerprint(TINY_BASE)
    stock = base.parent / "both"
    shutil.copytree(TINY_BASE, stock)
    for name in ("params.json", "consolidated.safetensors"):
        (stock / name).write_text("{}", "utf-8")
    assert family_for(str(stock), None)[0].model_type == "voxtral_realtime"
    open_family(stock).load("bfloat16")
    assert base_fingerprint(stock) == fingerprint


@torch.inference_mode()
def greedy(network, split: PackedSplit, index: int, tokens: int) -> list[int]:
    """The first `tokens` that it writes after the prompt of 39."""
    ids = list(split.layout.prompt_ids(split.clip(index)))
    audio = network.audio_embeddings([torch.from_numpy(split.mel_of(index, len(ids) + tokens))], len(ids) + tokens)
    for _ in range(tokens):
        hidden = network.hidden(torch.tensor([ids]), audio[:, : len(ids)])
        ids.append(int(network.logits(hidden[0, -1]).argmax()))
    return ids[-tokens:]


def test_it_writes_the_same_tokens(exported, packed):
    split = PackedSplit(packed["packed"], "test")
    own, stock = open_family(exported).load("float32"), load_tiny()
    for index in range(3):
        written = greedy(own, split, index, 40)
        assert written == greedy(stock, split, index, 40)
        assert 33 in written, "it hears words"


def test_a_hub_repository_that_holds_nothing_else(exported, tmp_path, monkeypatch):
    """From the hub's cache. From the published repository, which has both formats, `consolidated*` is never downloaded."""
    snapshot = tmp_path / "models--you--it" / "snapshots" / "abc"
    shutil.copytree(exported, snapshot)
    (tmp_path / "models--you--it" / "refs").mkdir()
    (tmp_path / "models--you--it" / "refs" / "main").write_text("abc", "utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert resolve_base("you/it", None) == snapshot
    assert base_fingerprint(resolve_base("you/it", None)) == base_fingerprint(exported)


@pytest.fixture
def run(demo, call):
    """A command with a config of the demo, or the shipped one, which must succeed."""

    def run(command: str, config: str, *changes: str) -> None:
        path = demo / "configs" / config
        changes = ("model.dtype=float32", "tracking.mode=disabled", *changes)
        sets = [part for change in changes for part in ("--set", change)]
        result = call(command, path if path.is_file() else REPO / "configs" / config, *sets)
        assert result.exit_code == 0, result.stderr

    return run


@pytest.mark.slow
def test_it_is_a_base_for_training_and_evaluation(exported, demo, call, run, tmp_path):
    """On the demo's dataset, which was packed with the same processor."""
    sft = tmp_path / "sft"
    dry = call("sft", demo / "configs/sft.yaml", "--dry-run", "--set", f"model.base={exported}", "--set", f"output={sft}")
    assert dry.exit_code == 0, dry.stderr
    run("sft", "sft.yaml", f"model.base={exported}", f"output={sft}", "train.epochs=1")
    systems = f"systems=[{{name: base}}, {{name: SFT, adapter: {sft}}}]"
    run("eval", "eval-sft.yaml", f"model.base={exported}", f"output={tmp_path / 'eval'}", systems, "comparisons=null")
    run("export", "export.yaml", f"model.base={exported}", f"adapter={sft}", "evaluation=null", "system=null",
        "format=transformers", f"output={tmp_path / 'out'}")  # fmt: skip
    VoxtralRealtimeForConditionalGeneration.from_pretrained(tmp_path / "out/merged")
    AutoProcessor.from_pretrained(tmp_path / "out/merged")


def test_an_adapter_merged_in_either_format_gives_the_same_base(demo, run, tmp_path):
    merged = {file_format: tmp_path / file_format / "merged" for file_format in ("transformers", "mistral")}
    for file_format, folder in merged.items():
        run("export", "export.yaml", f"model.base={TINY_BASE}", f"adapter={demo}/runs/sft", "evaluation=null", "system=null",
            f"format={file_format}", f"output={folder.parent}")  # fmt: skip
    files = {path.name for path in merged["mistral"].iterdir()}
    assert files == {"consolidated.safetensors", "params.json", "tekken.json", "preprocessor_config.json", "evoxtral.json"}
    stock, own = (open_family(folder).load("float32").model.state_dict() for folder in merged.values())
    base = load_tiny().model.state_dict()
    assert all(torch.equal(own[name], stock[name]) for name in stock)
    changed = {name.split(".")[-2] for name in stock if not torch.equal(stock[name], base[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}
    systems = ("systems=[{name: base}]", "comparisons=null")
    run("eval", "eval-sft.yaml", f"model.base={merged['mistral']}", f"output={tmp_path / 'eval'}", *systems)
