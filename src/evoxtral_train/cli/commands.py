"""Every command that takes a config: its stage and its config class."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`stage`: a module in `stages`. `config`: module and class in `config`. `shared`: whether several processes share the work;
    otherwise the first does it alone."""

    stage: str
    config: str
    help: str
    shared: bool = False


COMMANDS = {
    "data import": Command("data.import_", "data.ImportConfig", "Convert a corpus to a manifest."),
    "data synth": Command("data.synth", "data.SynthConfig", "Speak tagged scripts into audio and a manifest."),
    "data check": Command("data.check", "data.PackConfig", "Find rows that packing would reject or that would train badly."),
    "data stats": Command("data.stats", "data.StatsConfig", "Report on a manifest: hours, tags, speakers, and what to fix."),
    "data align": Command("data.align", "data.AlignConfig", "Add times of words and tags, as heard by the base model."),
    "data pack": Command("data.pack", "data.PackConfig", "Turn a manifest into a packed dataset."),
    "sft": Command("sft", "training.SftConfig", "Train a LoRA adapter on a packed dataset.", shared=True),
    "raft generate": Command("raft.generate", "training.RaftConfig", "Sample N candidates for every clip.", shared=True),
    "raft score": Command("raft.score", "training.RaftConfig", "Compute every candidate's reward."),
    "raft curate": Command("raft.curate", "training.RaftConfig", "Keep the best candidate of each clip, drop the lowest share."),
    "raft train": Command("raft.train", "training.RaftConfig", "Train the adapter on the curated candidates.", shared=True),
    "raft run": Command("raft.run", "training.RaftConfig", "Repeat all four steps while held-out clips improve.", shared=True),
    "raft pairs": Command("raft.pairs", "training.RaftConfig", "Export the best and worst candidate per clip, for DPO."),
    "eval": Command("eval", "evaluation.EvalConfig", "Score the base and adapters on one split.", shared=True),
    "probe": Command(
        "probe",
        "evaluation.ProbeConfig",
        "Fit a classifier of tags on the frozen audio; it can score clips that have no text.",
        shared=True,
    ),
    "diagnose": Command(
        "diagnose", "evaluation.DiagnoseConfig", "Say why tags are weak: the data, the base or the adapter; and what to do."
    ),
    "calibrate": Command(
        "calibrate", "evaluation.CalibrateConfig", "Fit the confidence that each tag needs to be kept.", shared=True
    ),
    "transcribe": Command(
        "transcribe", "transcription.TranscribeConfig", "Write what was said in recordings, and how.", shared=True
    ),
    "serve": Command("serve", "serving.ServeConfig", "Transcribe while people speak: WebSocket, HTTP, and a page."),
    "export": Command("export", "evaluation.ExportConfig", "Write the adapter with a model card; merge; push."),
    "tiny-base": Command("tiny_base", "training.TinyBaseConfig", "Train a small base checkpoint, as in data/tiny-base."),
}
