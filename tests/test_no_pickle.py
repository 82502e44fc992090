"""No pickle is ever read: no code of the package does, and what it calls is not brought to.

Which sentence refuses a folder that holds a pickle alone stands in test_sentences.py, that none is fetched in
test_hub.py. What the libraries do beyond flags of theirs:

- transformers takes `use_safetensors=True`, and yet reads as a pickle whatever an index of shards names
  without ".safetensors", and the "adapter_model.bin" that a config.json may name; here both are refused.
  What PEFT left beside a base it would load on top, were it told the folder; it is given tensors instead.
- `datasets.load_dataset` has no flag for it. Its module for files of pandas' pickles raises, scripts of a
  repository it no longer runs, and what a tar holds as .pickle it does not decode; what a tar holds as .pth
  it gives to `torch.load(weights_only=True)`, which builds tensors and numbers and calls nothing else.
- PEFT, for `verify` alone, reads the safetensors file where there is one; without it `verify` ends before.
- processes of torch.distributed exchange tensors here: its calls for other objects pickle them.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import datasets
import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file
from test_hub import cached_gpt2, cached_sst2, python
from transformers import GPT2LMHeadModel

import lora_from_scratch
from lora_from_scratch.base.load import BUNDLED_MODEL, load_model, load_tokenizer
from lora_from_scratch.errors import UserError
from lora_from_scratch.formats.adapted import load_adapted

PACKAGE = Path(lora_from_scratch.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "copyreg", "marshal"}
PICKLING |= {"multiprocess", "multiprocessing", "DataLoader", "PyExtensionType"}
PICKLING |= {
    "Unpickler",
    "read_pickle",
    "load_from_disk",
    "allow_pickle",
    "weights_only",
    "trust_remote_code",
}
PICKLING |= {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}
PICKLING |= {"send_object_list", "recv_object_list", "torch.distributed.checkpoint.load", "dcp"}
LOADERS = {"torch.load", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load"}
LOADERS |= {"torch.hub.load_state_dict_from_url", "torch.serialization.load", "numpy.lib.format.read_array"}
NOTES_ERRORS = "torch.distributed.elastic.multiprocessing.errors"  # for torchrun, as JSON
WITHOUT_WEIGHTS = {
    "AutoConfig": "JSON",
    "AutoTokenizer": "JSON and text: version 5 has no tokenizer left that is kept otherwise",
    "nn.Embedding": "no file at all",
    "library.PeftModel": "PEFT's own way, see above",
}


class Trap:
    """Loading its pickle makes a folder."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.sprung,)


def names(tree: ast.AST) -> Iterator[str]:
    """What a module imports, the attributes that it names, alone and with their owners, and flags."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            if module == NOTES_ERRORS:
                continue
            for one in node.names:
                yield from one.name.split(".")
                yield f"{module}.{one.name}" if module else one.name
            yield from (module or "").split(".")
        elif isinstance(node, ast.Attribute):
            yield from (node.attr, ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg


@cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch as t, _pickle",
        "torch.load(path)",
        "from torch import load",
        "numpy.load(path, allow_pickle=True)",
        "load(path, allow_pickle=flag)",
        "pandas.read_pickle(path)",
        "distributed.broadcast_object_list(them)",
        "from torch.utils.data import DataLoader",
        "read = torch.load",
    ],
)
def test_what_reads_a_pickle_is_known_by_its_names(line):
    assert (PICKLING | LOADERS) & set(names(ast.parse(line)))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_names_what_reads_a_pickle(module):
    assert not (PICKLING | LOADERS) & set(names(tree_of(module)))


def calls(*called: str) -> Iterator[tuple[str, ast.Call]]:
    """Whose method each call of one of these is, and the call."""
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in called
            ):
                yield ast.unparse(node.func.value), node


def test_models_are_loaded_from_safetensors_alone():
    found = list(calls("from_pretrained"))
    assert {owner for owner, _ in found} > WITHOUT_WEIGHTS.keys()
    for owner, call in found:
        flags = {flag.arg: ast.unparse(flag.value) for flag in call.keywords}
        assert owner in WITHOUT_WEIGHTS or flags.get("use_safetensors") == "True", ast.unparse(call)


def test_of_datasets_only_the_hubs_are_loaded():
    ((_, call),) = [found for found in calls("load_dataset") if found[0] == "datasets"]
    assert ast.unparse(call.args[0]).startswith("f'hf://datasets/")


@pytest.mark.filterwarnings("ignore:The Pandas builder:FutureWarning")
def test_datasets_executes_nothing_of_a_repository(tmp_path, monkeypatch):
    """Neither a table of pandas', nor the members of a tar, nor a script."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sprung = tmp_path / "sprung"
    trap, tensor_file = pickle.dumps(Trap(sprung)), io.BytesIO()
    torch.save(Trap(sprung), tensor_file)
    members = {"0.pickle": trap, "0.pyd": trap, "1.pth": tensor_file.getvalue()}
    for name in ("pandas", "tar", "script"):
        (tmp_path / name).mkdir()
    (tmp_path / "pandas" / "train.pkl").write_bytes(trap)
    with tarfile.open(tmp_path / "tar" / "train.tar", "w") as tar:
        for member, content in members.items():
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    (tmp_path / "script" / "script.py").write_text(f"open({str(sprung)!r}, 'w')")
    for repository, files in (("pandas", None), ("pandas", "train.pkl"), ("tar", None), ("script", None)):
        kind = "pandas" if files else str(tmp_path / repository)
        data_files = str(tmp_path / repository / files) if files else None
        with pytest.raises(
            (
                ValueError,
                OSError,
                RuntimeError,
                datasets.exceptions.DatasetGenerationError,
                pickle.UnpicklingError,
            )
        ):
            datasets.load_dataset(kind, data_files=data_files)
    assert not sprung.exists()
    pickle.loads(trap)
    assert sprung.exists()


REFUSALS = """
import _pickle, pickle, sys, traceback
reached = []
def refuse(*_, **__):
    reached.append("".join(traceback.format_stack(limit=8)))
    raise RuntimeError("a pickle is read")
class Refused(pickle._Unpickler):
    __init__ = load = refuse
for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Refused
pickle._load = pickle._loads = refuse
pickle._Unpickler = Refused
sys.addaudithook(lambda event, _: refuse() if event == "pickle.find_class" else None)
import numpy, torch
torch.load = torch.serialization.load = torch.jit.load = numpy.load = numpy.lib.format.read_array = refuse
"""
PROGRAM = """
import json, os, signal
from lora_from_scratch.cli import commands
from lora_from_scratch.cli.main import main
from lora_from_scratch.compare import going
from lora_from_scratch.report import page, picture
from lora_from_scratch.train.checkpoints import Checkpoints
# What takes long, and opens nothing.
commands._probe = lambda: ["a good film", "a dull one"]
going.account = lambda prepared: None
picture.draw_training = lambda results, metrics: None
page.comparison_pictures = lambda comparison: {}
write = Checkpoints.write
def interrupted(self, *arguments):
    Checkpoints.write = write
    os.kill(os.getpid(), signal.SIGTERM)
    return write(self, *arguments)
Checkpoints.write = interrupted
done = [[line, main(line), len(reached)] for line in json.loads(sys.argv[1])]
reading = [lambda: pickle.loads(b"N."), lambda: torch.load("it"), lambda: numpy.load("it")]
for read in reading:
    try:
        read()
    except RuntimeError as error:
        done.append(str(error))
print("\\n" + json.dumps(done))
print(*reached[: -len(reading)], file=sys.stderr)
"""


def test_everything_works_where_no_pickle_can_be_read(tmp_path):
    """Trainings with checkpoints, one of them interrupted, and all that is done with what they left."""
    from pyarrow import Table, csv, parquet

    cached_gpt2(tmp_path)
    cached_sst2(tmp_path)
    rows = {
        "sentence": [f"{word} film {i}" for i in range(20) for word in ("good", "dull")],
        "label": [1, 0] * 20,
    }
    parquet.write_table(Table.from_pydict(rows), tmp_path / "rows.parquet")
    csv.write_csv(Table.from_pydict(rows), tmp_path / "rows.csv")
    run, dataset = str(tmp_path / "run"), ["--dataset", str(tmp_path / "rows.csv")]
    quick = ["--precision", "fp32", "--max-steps", "2", "--max-length", "16"]
    bundled, merged = ["--model", "bundled"], str(tmp_path / "merged")
    table = ["--dataset", str(tmp_path / "rows.parquet")]
    plan = ["--methods", "head", "lora", "--seeds", "0", "--output-dir", str(tmp_path / "compared")]
    lines = {
        (*quick, *bundled, *dataset, "--checkpoint-every", "1", "--output-dir", run): 143,
        ("--resume", run): 0,
        ("predict", "--adapter", run, "a good film"): 0,
        ("evaluate", "--adapter", run, *dataset, "--output-dir", str(tmp_path / "evaluated")): 0,
        ("merge", "--adapter", run, "--out", merged): 0,
        ("predict", "--adapter", merged, "a good film"): 0,
        (*quick, *table, "--method", "full", "--output-dir", str(tmp_path / "full")): 0,
        (*quick, "--method", "prefix", "--output-dir", str(tmp_path / "hub")): 0,
        ("compare", *dataset, *quick, *plan): 0,
    }
    done = python(tmp_path, "-c", REFUSALS + PROGRAM, json.dumps(list(lines)), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    *told, one, two, three = json.loads(done.stdout.splitlines()[-1])
    assert {tuple(line): status for line, status, _ in told} == lines, done.stderr
    assert {one, two, three} == {"a pickle is read"}  # of what the program itself tried
    assert {reached for _, _, reached in told} == {0}, done.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A checkpoint with a trap where a pickle may lie; what is sprung, or given to `torch.load`, is seen."""
    read: list[object] = []
    monkeypatch.setattr(torch, "load", lambda file, *_, **__: read.append(file))
    folder = tmp_path / "model"
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config(vocab_size=8192)).save_pretrained(folder, max_shard_size="100KB")
    load_tokenizer("bundled").save_pretrained(folder)
    yield folder
    assert not read and not (tmp_path / "sprung").exists()


def trap(folder: Path, name: str) -> None:
    torch.save({"score.weight": Trap(folder.parent / "sprung")}, folder / name)


def pickle_alone(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    trap(folder, "pytorch_model.bin")


def adapter_alone(folder: Path) -> None:
    pickle_alone(folder)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(BUNDLED_MODEL), "r": 1})
    )
    trap(folder, "adapter_model.bin")


def shards_that_are_called_bin(folder: Path) -> None:
    """In truth each is a safetensors file, at its beginning; a zip file has its contents at its end."""
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('.safetensors"', '.bin"'))
    for path in folder.glob("model-*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def other_weights(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "transformers_weights": "adapter_model.bin"}))
    trap(folder, "adapter_model.bin")


@pytest.mark.parametrize(
    ("lay", "told"),
    [
        (pickle_alone, r"its weights in a pickle alone \(pytorch_model.bin\), which is never opened"),
        (adapter_alone, "adapter_model.bin is a pickle, never opened here"),
        (shards_that_are_called_bin, r"index.json is damaged \(model-.*.bin is no safetensors file\)"),
        (other_weights, r"config.json is damaged \(transformers_weights names another file of weights\)"),
    ],
)
def test_nothing_is_executed_from_a_folder_with_pickles(folder, lay, told):
    lay(folder)
    with pytest.raises(UserError, match=told) as refused:
        load_adapted(folder)
    assert "\n" not in str(refused.value)
    if lay is not adapter_alone:
        with pytest.raises(UserError, match=told):
            load_model(str(folder), ["negative", "positive"], 0)


@pytest.mark.parametrize("weights", ["adapter_model.bin", "adapter_model.safetensors"])
def test_an_adapter_beside_a_base_is_not_loaded_with_it(folder, weights):
    """transformers does so where PEFT is installed."""
    values = {"peft_type": "LORA", "r": 1, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    if weights.endswith(".bin"):
        trap(folder, weights)
    else:
        key = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
        save_file({key.format("A"): torch.ones(1, 16), key.format("B"): torch.ones(48, 1)}, folder / weights)
    model = load_model(str(folder), ["negative", "positive"], 0)
    assert not [name for name in model.state_dict() if "lora" in name]
