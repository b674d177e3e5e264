"""Every command that takes a config: which stage runs it, and which class its config is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`stage`: a module below `stages`. `config`: a class in a module below `config`. `shared`: of several processes each does a
    part; otherwise the first does it alone."""

    stage: str
    config: str
    help: str
    shared: bool = False


COMMANDS = {
    "data import": Command("data.import_", "data.ImportConfig", "Turn a corpus of any shape into a manifest."),
    "data synth": Command("data.synth", "data.SynthConfig", "Speak tagged scripts into audio and a manifest."),
    "data check": Command("data.check", "data.PackConfig", "Find every row that packing would reject or that would train badly."),
    "data stats": Command("data.stats", "data.StatsConfig", "A report on a manifest: hours, tags, speakers, and what to fix."),
    "data align": Command("data.align", "data.AlignConfig", "Times for words and tags from what the base model hears."),
    "data pack": Command("data.pack", "data.PackConfig", "Turn a manifest into a packed dataset."),
    "sft": Command("sft", "training.SftConfig", "Train a LoRA adapter on a packed dataset.", shared=True),
    "raft generate": Command("raft.generate", "training.RaftConfig", "Sample N candidates for every clip.", shared=True),
    "raft score": Command("raft.score", "training.RaftConfig", "Give every candidate a reward by rule."),
    "raft curate": Command("raft.curate", "training.RaftConfig", "Keep the best candidate of each clip, drop the lowest share."),
    "raft train": Command("raft.train", "training.RaftConfig", "Train the adapter on the curated candidates.", shared=True),
    "raft run": Command("raft.run", "training.RaftConfig", "Rounds of all four, as long as they help.", shared=True),
    "raft pairs": Command("raft.pairs", "training.RaftConfig", "Export the best and the worst of each clip, for DPO."),
    "eval": Command("eval", "evaluation.EvalConfig", "Score the base and adapters on one split.", shared=True),
    "export": Command("export", "evaluation.ExportConfig", "The adapter with a model card from its runs; merged; pushed."),
    "tiny-base": Command("tiny_base", "training.TinyBaseConfig", "Train the small base checkpoint in data/tiny-base."),
}
