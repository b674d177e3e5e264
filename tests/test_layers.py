"""The layer rule of the design, held by reading every import."""

import ast
import subprocess
import sys

from conftest import REPO
from evoxtral_train.families.checkpoint import FAMILIES, family_named

PACKAGE = REPO / "src" / "evoxtral_train"
LAYERS = [
    {"cli"}, {"stages"}, {"serving"}, {"reporting"}, {"tiny_bases"}, {"transcription"}, {"training"}, {"decoding"}, {"modeling"},
    {"dataset"},
    {"families"}, {"corpus"}, {"synthesis"}, {"data"}, {"raft"}, {"scoring"}, {"text"}, {"jobs"}, {"tracking"}, 
    {"runs", "progress"},
    {"run_folders"}, {"records"}, {"config"}, {"processes"}, {"files", "reading"}, {"units", "errors", "shipped", "plain_text"},
]  # fmt: skip
# `config` checks tag names and the pre-padding's default, so the text and unit modules lie below it.
BELOW_CONFIG = {"text.tags", "units", "errors"}


def _rank(layer: str) -> int:
    return next(i for i, layers in enumerate(LAYERS) if layer in layers)


def _imports(path):
    """(layer, dotted module) of everything that a module of the package imports from the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
            for name in [".".join([*base, alias.name]) if not node.module else ".".join(base) for alias in node.names]:
                yield name.split(".")[0], name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                assert not name.startswith("evoxtral_train"), f"{path}: import relatively"


def test_imports_go_downward_only():
    upward = []
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for layer, module in _imports(path):
            if layer != own and _rank(layer) <= _rank(own) and not (own == "config" and module in BELOW_CONFIG):
                upward.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert upward == []


def test_every_module_has_a_layer():
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert names <= set().union(*LAYERS)


def test_config_errors_scoring_and_curation_need_no_torch():
    modules = [
        "cli.main", "config.loader", "config.data", "config.training", "config.evaluation", "runs",
        "records", "tracking", "text.tags", "text.normalize",
        "scoring.metrics", "raft.reward", "raft.curation", "stages.raft.score", "stages.raft.curate",
        "stages.eval_predictions", "stages.compare", "stages.cache",
        "stages.data.import_", "stages.data.stats", "stages.data.pack", "stages.data.check",
        "text.taxonomy", "data.recordings", "data.segments", "transcription.transcript", "transcription.formats",
    ]  # fmt: skip
    code = "import sys, importlib\n" + "".join(f"importlib.import_module('evoxtral_train.{name}')\n" for name in modules)
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def _own_code(*layers: str):
    """(path below the package, its syntax tree) of every module, but for those of `layers`."""
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE).as_posix()
        if not relative.startswith(layers):
            yield relative, ast.parse(path.read_text("utf-8"))


def test_no_module_outside_its_family_names_a_layout():
    layouts = {layout for name in FAMILIES for layout in family_named(name).layouts}
    assert layouts >= {"packed", "deferred", "aligned"}
    compared, classes = [], {name.title() for name in layouts}
    for path, tree in _own_code("families/"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare | ast.Match):
                texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                compared += [f"{path}:{node.lineno}: compares with {name!r}" for name in texts & layouts]
            if isinstance(node, ast.ImportFrom) and "families" in (node.module or ""):
                compared += [f"{path}: imports {alias.name}" for alias in node.names if alias.name in classes]
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and node.value.value in layouts:
                compared.append(f"{path}:{node.value.lineno}: {node.arg}={node.value.value!r}")
    assert compared == []


def test_nothing_above_the_families_asks_which_family_it_is():
    """`tiny_bases` makes the checkpoints of a family, one module for each, and so knows it."""
    asking, folders = [], [path.name for path in (PACKAGE / "families").iterdir() if path.is_dir()]
    for path, tree in _own_code("families/", "tiny_bases/"):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(f"families.{name}" in (node.module or "") for name in folders):
                asking.append(f"{path}: imports {node.module}")
            if isinstance(node, ast.Attribute) and node.attr == "model_type":
                asking.append(f"{path}:{node.lineno}: reads model_type")
            if isinstance(node, ast.Compare):
                texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                asking += [f"{path}:{node.lineno}: compares with {name!r}" for name in texts & FAMILIES.keys()]
    assert asking == []
