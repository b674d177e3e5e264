"""What does DPO make of the pairs of a RAFT round? TRL's trainer against RAFT's, on the same candidates.

    evoxtral raft pairs configs/demo/raft.yaml           # with the settings of the round
    pip install --no-deps trl==1.16.0                    # not a dependency of evoxtral
    python benchmarks/dpo.py runs/demo/raft/round-1 --output runs/dpo

DPO starts from the adapter that wrote the candidates, which is also its reference. It makes as many steps as `raft train` did,
with as many pairs to a step as that had rows. An arm is a learning rate; `1e-4+1` also adds the SFT loss on the chosen answers,
with weight 1. Each arm gives an adapter folder, as `evoxtral eval` loads it, and is compared with the start and with RAFT on the
test clips. Several rounds, such as one for each seed, are pooled.

TRL knows images, not audio. Three parts of its `DPOTrainer` are replaced here; the loss and the training loop are its own:

- `_prepare_dataset` encodes `prompt`, `chosen` and `rejected` again, and overwrites the token ids of the pairs.
- The collator has nothing but token ids.
- The trainer runs the model without its head (`add_fused_lm_head`), and that part reads `input_features` only. It would encode
  the audio of a pair four times: for two answers, by the policy and by the reference.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from datasets import Dataset
from studies import DEMO, Command, differences, each_seed, run_phases, score_over_seeds, signed, slug, systems_of
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Train
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.families.base import Network
from evoxtral_train.modeling.adapter_record import AdapterRecord
from evoxtral_train.modeling.audio_cache import CachedAudio, open_cache
from evoxtral_train.modeling.bases import load_network, open_adapter, open_base_of, pick_device
from evoxtral_train.records import PreferencePair, read_rows
from evoxtral_train.reporting.tables import interval, markdown_table
from evoxtral_train.runs import require_complete

SFT, RAFT = "SFT", "RAFT"
MEASURES = ("micro_f1", "false_tags_per_untagged_clip")


def main() -> None:
    options = _options()
    commands, evaluated = [], {}
    for number, folder in enumerate(options.rounds):
        round_, output = _Round.read(folder), options.output / f"run-{number}"
        adapters = {SFT: round_.adapter, RAFT: folder / "train"}
        for arm in options.arms:
            adapters[arm.name] = output / slug(arm.name)
            if not (adapters[arm.name] / "dpo.json").is_file():
                train(round_, arm, options.beta, adapters[arm.name])
        for name, adapter in adapters.items():
            settings = {"dataset": round_.dataset, "model__base": round_.model.base}
            settings["systems"] = f"[{{name: {slug(name)}, adapter: {adapter}}}]"
            evaluated[number, name] = output / "eval" / slug(name)
            commands.append(Command.of("eval", DEMO / "eval-raft.yaml", evaluated[number, name], **settings))
    run_phases([commands], options.jobs, options.output / "logs")
    runs, content = range(len(options.rounds)), {}
    rows = {key: systems_of(folder)[slug(key[1])] for key, folder in evaluated.items()}
    for name in (SFT, RAFT, *(arm.name for arm in options.arms)):
        content[name] = score_over_seeds({f"run {run}": rows[run, name] for run in runs})
        for other in (SFT, RAFT):
            pooled = ([row for run in runs for row in rows[run, each]] for each in (other, name))
            content[name][f"against {other}"] = differences(*pooled)
    (options.output / "results.json").write_text(json.dumps(content, indent=1), "utf-8")
    print(_table(content))


@dataclass(frozen=True)
class Arm:
    """`sft_weight`: of the SFT loss beside DPO's."""

    learning_rate: float
    sft_weight: float

    @classmethod
    def parse(cls, text: str) -> "Arm":
        rate, _, weight = text.partition("+")
        return cls(float(rate), float(weight or 0))

    @property
    def name(self) -> str:
        return f"DPO {self.learning_rate:g}" + (f" + {self.sft_weight:g} SFT" if self.sft_weight else "")


@dataclass(frozen=True)
class _Round:
    """A finished round of RAFT, with its pairs. `steps`: those of `raft train`."""

    dataset: Path
    split: PackedSplit
    model: Model
    adapter: Path
    settings: Train
    steps: int
    pairs: list[PreferencePair]

    @classmethod
    def read(cls, folder: Path) -> "_Round":
        for step in ("train", "pairs"):
            require_complete(folder / step, f"raft {step}", f"evoxtral raft {step} …")
        config = yaml.safe_load((folder / "train/config.yaml").read_text("utf-8"))
        return cls(
            dataset=Path(config["dataset"]),
            split=PackedSplit(Path(config["dataset"]), config["split"]),
            model=Model.model_validate(config["model"]),
            adapter=Path(config["adapter"]),
            settings=Train.model_validate(config["train"]),
            steps=json.loads((folder / "train/metrics.json").read_text("utf-8"))["steps"],
            pairs=read_rows(folder / "pairs/pairs.jsonl", PreferencePair),
        )


def train(round_: _Round, arm: Arm, beta: float, output: Path) -> None:
    """Writes the adapter, and TRL's log as dpo.json."""
    base, device = open_base_of(round_.split, round_.model), pick_device(round_.model.device)
    adapter = open_adapter(round_.adapter, base, round_.model)
    network = load_network(base, round_.model.dtype, adapter, trainable=True)
    cache = open_cache(network, device, base.fingerprint, round_.split)
    network.drop_audio_path()
    hear(network)
    settings = round_.settings
    arguments = DPOConfig(
        output_dir=str(output),
        beta=beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, arm.sft_weight],
        learning_rate=arm.learning_rate,
        max_steps=round_.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        max_length=None,
        gradient_checkpointing=False,
        bf16=round_.model.dtype == "bfloat16",
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        logging_steps=max(round_.steps // 10, 1),
        save_strategy="no",
        report_to=[],
    )
    rows = [{name: getattr(pair, name) for name in Rows.COLUMNS} for pair in round_.pairs]
    trainer = Trainer(
        model=network.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=Rows(round_.split, cache, DataCollatorForPreference(round_.split.layout.pad_id)),
        processing_class=base.family.processor,
    )
    trainer.train()
    network.model.save_pretrained(output, selected_adapters=["default"])  # "ref" is the reference
    AdapterRecord.of(round_.split, base.fingerprint).write(output)
    (output / "dpo.json").write_text(json.dumps({"pairs": len(rows), "log": trainer.state.log_history}, indent=1), "utf-8")


class Trainer(DPOTrainer):
    """TRL's, without its encoding of texts: the pairs have token ids."""

    def _prepare_dataset(self, dataset: Dataset, *_) -> Dataset:
        return dataset


@dataclass(frozen=True)
class Rows:
    """Pairs -> TRL's batch, all chosen answers before all rejected ones, with their audio [2 × pairs, T, hidden]."""

    split: PackedSplit
    cache: CachedAudio
    collate: DataCollatorForPreference

    COLUMNS = ("utterance_id", "prompt_ids", "chosen_ids", "rejected_ids")

    def __call__(self, pairs: Sequence[dict]) -> dict[str, torch.Tensor]:
        rows = [
            self.cache.row(self.split.index_of[pair["utterance_id"]], len(pair["prompt_ids"]) + len(pair[answer]))
            for answer in ("chosen_ids", "rejected_ids") for pair in pairs
        ]  # fmt: skip
        return self.collate(list(pairs)) | {"audio_embeds": pad_sequence(rows, batch_first=True)}


def hear(network: Network) -> None:
    """Let the model without its head read the projected audio. Padding comes after everything that is scored, so the attention
    mask is not needed."""

    def forward(input_ids: torch.Tensor, audio_embeds: torch.Tensor, **_) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=network.hidden(input_ids, audio_embeds))

    network.stock.model.forward = forward


def _table(content: dict) -> str:
    rows = []
    for name, report in content.items():
        cells = [name, interval(report["micro"]["f1"]), each_seed(report), interval(report["false_tags_per_untagged_clip"])]
        changes = (report[f"against {other}"][measure] for other in (SFT, RAFT) for measure in MEASURES)
        rows.append(cells + [signed(change) for change in changes])
    columns = ["system", "micro F1", "each seed", "false tags / untagged clip"]
    columns += [f"{name}, against {other}" for other in (SFT, RAFT) for name in ("micro F1", "false tags")]
    return markdown_table(columns, rows)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=Path, nargs="+", help="finished rounds, with pairs/: runs/demo/raft/round-1 …")
    parser.add_argument("--output", type=Path, default=Path("runs/dpo"))
    parser.add_argument("--arms", type=Arm.parse, nargs="+", default=[Arm(2e-5, 0), Arm(1e-4, 0), Arm(1e-4, 1)])
    parser.add_argument("--beta", type=float, default=0.1, help="how strongly DPO is held to its start")
    parser.add_argument("--jobs", type=int, default=1, help="evaluations to run at a time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
