"""The probe, the hub over HTTP, its cache, and what stands in for it; runs in processes of their own."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import torch
from conftest import tiny_config
from datasets.arrow_writer import ArrowWriter
from huggingface_hub.utils._http import default_client_factory
from safetensors.torch import save_file
from stub_hub import StubHub
from transformers import GPT2LMHeadModel

from lora_from_scratch.base import reachable as hub
from lora_from_scratch.base.hub import Answers
from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.data import dataset
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.data.hub import warn_of_shadow
from lora_from_scratch.data.rows import Selection
from lora_from_scratch.errors import NotFound, UserError
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.prepare import prepare

pytestmark = pytest.mark.usefixtures("few_sentences")
ROOT = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9"  # a port where nobody listens


def python(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python` in the project's folder with its own cache, and a hub that does not answer."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment_of(home, **environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


# What it prints first was found when torch alone had been loaded.
TORCH_ALONE = """
import gc, io, json, os, signal, sys, time, traceback
from lora_from_scratch.base import reachable
def answer(*_, **__):
    while not hasattr(sys.modules.get("torch"), "compile"):
        time.sleep(0.01)
    return io.BytesIO()
reachable.urllib.request.urlopen, urlopen = answer, reachable.urllib.request.urlopen
reachable.PROBE_SECONDS, patience = 60, reachable.PROBE_SECONDS
started = time.monotonic()
reachable.go_offline_if_unreachable()
seconds, offline = time.monotonic() - started, os.environ.get("HF_HUB_OFFLINE")
readers = [name for name in ("huggingface_hub", "transformers", "datasets") if name in sys.modules]
print(json.dumps(dict(seconds=seconds, offline=offline, readers=readers)), flush=True)
reachable.urllib.request.urlopen, reachable.PROBE_SECONDS = urlopen, patience
import pandas, pyarrow, sklearn.metrics, torch._dynamo  # which read nothing of a hub, and are imported later
assert not {"huggingface_hub", "transformers", "datasets"} & sys.modules.keys()
gc.freeze()
for line in sys.stdin:
    code, environment, out, err = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            signal.alarm(120)
            os.environ.clear()
            os.environ.update(environment)
            exec(code, dict(__name__="__main__"))
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """The environment with a cache of its own, and a hub that does not answer."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return {**kept, "HF_HOME": str(home), "HF_ENDPOINT": CLOSED, **more}


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """A Python that waited for the hub and has torch, but nothing yet that reads of the hub; what it found.

    It forks for whoever sends it code, an environment, and files for what is printed; and says the status.
    """
    with subprocess.Popen(
        [sys.executable, "-c", TORCH_ALONE],
        env=environment_of(tmp_path_factory.mktemp("alone")),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process, json.loads(process.stdout.readline())


def command_lines(
    alone: subprocess.Popen[str], home: Path, lines: list[list[str]], code: str = "", **environment: str
) -> list[dict[str, object]]:
    """What each command line does, one after the other in one process that ends with the Python in `code`.

    Their outputs are caught where the operating system takes them, whoever writes. A line that starts with
    /befall/ is asked of the hub instead. The bundled sentences are few there, too.
    """
    program = f"""
import json, os, sys, tempfile, time, urllib.request
from pathlib import Path
from lora_from_scratch.cli.main import main
from lora_from_scratch.data import dataset
dataset.BUNDLED_DATASET = Path({str(dataset.BUNDLED_DATASET)!r})
answers, errors, done = os.fdopen(os.dup(1), "w"), os.dup(2), []
for line in {lines!r}:
    started = time.perf_counter()
    if line[0].startswith("/befall/"):
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + line[0]).close()
        continue
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        status = main(line)
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), err.seek(0)
        seconds = time.perf_counter() - started
        done.append(dict(status=status, stdout=out.read(), stderr=err.read(), seconds=seconds))
os.dup2(errors, 2)
{code}
print(json.dumps(done), file=answers, flush=True)
"""
    out, err = (home / f"said-on-{stream}" for stream in ("stdout", "stderr"))
    asked = [program, environment_of(home, **environment), str(out), str(err)]
    print(json.dumps(asked), file=alone.stdin, flush=True)
    assert int(alone.stdout.readline()) == 0, err.read_text()
    return json.loads(out.read_text())


def cached_gpt2(home: Path) -> dict[str, torch.Tensor]:
    """Put a small "gpt2" into the cache as the hub lays it: blobs, a snapshot of links to them, a ref.

    Its checkpoint is like the hub's own: keys without "transformer.", and the attention masks as tensors.
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(vocab_size=8192, n_positions=64))
    weights = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
    files = home / "files"
    load_tokenizer("bundled").save_pretrained(files)
    model.config.save_pretrained(files)
    save_file({**weights, **masks}, files / "model.safetensors", metadata={"format": "pt"})
    cached(home, "gpt2", {path.name: path.read_bytes() for path in files.iterdir()})
    return weights


def cached(home: Path, name: str, files: dict[str, bytes]) -> None:
    """Put files of a model into the cache as the hub lays them."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("6" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("6" * 40)
    for i, file in enumerate(sorted(files)):
        (repository / "blobs" / f"{i:040x}").write_bytes(files[file])
        (snapshot / file).symlink_to(Path("../../blobs") / f"{i:040x}")


def cached_sst2(home: Path, **rows: list[tuple[str, int]]) -> None:
    """Put a small GLUE SST-2 into the cache as `datasets` lays it after a download."""
    folder = home / "datasets" / "nyu-mll___glue" / "sst2" / "0.0.0" / ("b" * 40)
    folder.mkdir(parents=True)
    names = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": names, "idx": datasets.Value("int32")}
    )
    rows = {
        "train": [("good film ", 1), ("bad film ", 0)] * 8,
        "validation": [("a fine film ", 1), ("a poor film ", 0), ("nice ", 1)],
        "test": [("who knows ", -1)],
        **rows,
    }
    splits = datasets.SplitDict(dataset_name="glue")
    for split, examples in rows.items():
        with ArrowWriter(path=str(folder / f"glue-{split}.arrow"), features=features) as writer:
            for i, (sentence, label) in enumerate(examples):
                writer.write({"sentence": sentence, "label": label, "idx": i})
            _, size = writer.finalize()
        splits.add(datasets.SplitInfo(split, num_bytes=size, num_examples=len(examples), dataset_name="glue"))
    datasets.DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="glue",
        config_name="sst2",
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(folder))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub's for this process, which is offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path


def test_gpt2_and_sst2_load_from_the_hubs_cache(cache, capsys):
    weights = cached_gpt2(cache)
    cached_sst2(cache)
    flags = ["--method", "none", "--max-length", "64", "--precision", "fp32"]
    assert cli.main([*flags, "--output-dir", str(cache / "out")]) == 0
    printed = capsys.readouterr()
    assert "out of reach" not in printed.out and "warning" not in printed.err
    results = json.loads((cache / "out" / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("gpt2", "sst2")
    assert results["data"]["train_sentences"] == 16 and results["data"]["validation_sentences"] == 3
    assert results["data"]["validation_name"] == "validation"
    assert results["data"]["label_names"] == ["negative", "positive"]
    assert results["total_parameters"] == sum(tensor.numel() for tensor in weights.values()) + 32
    assert round(results["accuracy"] * 3 / 100, 9) in (0, 1, 2, 3)


def test_weights_from_the_cache_arrive_as_they_are(cache):
    weights = cached_gpt2(cache)
    model = load_model("gpt2", ["0", "1"], 0)
    loaded = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    assert set(loaded) == {*weights, "score.weight"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert (model.name_or_path, model.config.name_or_path) == ("gpt2", "gpt2")
    assert load_tokenizer("gpt2").name_or_path == "gpt2"


@pytest.fixture(scope="module")
def without_hub(tmp_path_factory, torch_alone, few_sentences) -> tuple[Path, list[dict[str, object]]]:
    """Command lines in a process that finds neither hub nor cache: what each one does."""
    home = tmp_path_factory.mktemp("nothing")
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(40))
    (home / "mine.tsv").write_text("sentence\tlabel\n" + rows)
    out = ["--output-dir", str(home / "out")]
    quick = ["--limit-train", "16", "--max-steps", "1", "--precision", "fp32"]
    lines = [
        [*quick, "--output-dir", str(home / "first")],
        ["--model", "gpt2", *out],
        ["--dataset", "sst2", *out],
        ["--dataset", str(home / "mine.tsv"), "--dry-run"],
    ]
    return home, command_lines(torch_alone[0], home, lines)


def test_without_hub_or_cache_the_bundle_stands_in_and_says_so(without_hub):
    home, (done, *_) = without_hub
    assert done["status"] == 0, done["stderr"]
    assert done["seconds"] < 60
    assert "No sst2 and gpt2: the hub is out of reach, and its cache does not hold" in done["stdout"]
    assert "mini-gpt2 (bundled) on mini-reviews (bundled)" in done["stdout"]
    results = json.loads((home / "first" / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("mini-gpt2 (bundled)", "mini-reviews (bundled)")
    noise = [line for line in done["stderr"].splitlines() if line.strip() and "it/s" not in line]
    noise = [line for line in noise if "always saying" not in line]  # of a result after so few steps
    assert not [line for line in noise if "retry" in line.lower() or "warn" in line.lower() or "http" in line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (1, "model 'gpt2' is neither here nor cached, and the hub is out of reach"),
        (2, "dataset 'sst2' is neither here nor cached, and the hub is out of reach"),
    ],
)
def test_what_was_asked_for_by_name_is_never_replaced(without_hub, line, message):
    home, done = without_hub
    assert done[line]["status"] == 2
    assert message in done[line]["stderr"] and "Traceback" not in done[line]["stderr"]
    assert len(done[line]["stderr"].strip().splitlines()) == 1
    assert not (home / "out").exists()


def test_a_named_dataset_goes_with_the_bundled_model(without_hub):
    home, done = without_hub
    assert done[3]["status"] == 0, done[3]["stderr"]
    assert "No gpt2: the hub is out of reach, and its cache does not hold" in done[3]["stdout"]
    assert f"mini-gpt2 (bundled) on {home / 'mine.tsv'}" in done[3]["stdout"]


# What befalls a repository of the stub hub, and the line that says so; {} is "model" or "dataset".
TOLD = {
    "private": "{} 'stub/private': the hub shows it to nobody without a login: check the name, and if it is "
    "private, log in: `hf auth login`, or HF_TOKEN",
    "bad token": "{} 'stub/bad-token': the hub does not know the token that it was sent: log in again: "
    "`hf auth login`, or HF_TOKEN",
    "gated": "{} 'stub/gated' is gated: agree to its terms on its page of the "
    "hub, then log in: `hf auth login`, or HF_TOKEN",
    "forbidden": "{} 'stub/forbidden': the hub does not show it to this token: log in as somebody who may "
    "see it: `hf auth login`, or HF_TOKEN",
    "missing": "{} 'stub/missing' is neither here nor on the hub: check the name, or use --{} bundled",
    "busy": "{} 'stub/busy': the hub takes no more requests from here for now (429): try again later, or use "
    "--{} bundled",
    "ill": "{} 'stub/ill': the hub has trouble of its own (503): try again later, or use --{} bundled",
    "stalls": "{} 'stub/stalls': the hub does not answer: try again later, or use --{} bundled",
    "stalls midway": "{} 'stub/stalls-midway': the download broke off (whole files are kept): try again "
    "later, or use --{} bundled",
    "breaks off": "{} 'stub/breaks-off': the download broke off (whole files are kept): try again later, or "
    "use --{} bundled",
}
# What is told of one whose configuration and tokenizer are cached without the weights.
IN_PART = {fate: TOLD[fate] for fate in ("private", "forbidden", "missing", "ill")}
IN_PART["closed"] = "{} 'stub/closed': the hub cannot be reached: try again later, or use --{} bundled"
# What else goes wrong with one: arguments, and the line.
WRONG = {
    "--model stub/pickle": "model 'stub/pickle' has its weights in a pickle alone (pytorch_model.bin), which "
    "is never opened: save it anew with transformers' save_pretrained",
    "--model stub/adapter": "model 'stub/adapter' is on the hub without its config.json: name a whole "
    "checkpoint of GPT-2",
    "--dataset glue": "dataset 'glue' has several configurations: name one of sst2, mnli, empty, null-text, "
    "null-label, as in --dataset nyu-mll/glue/sst2",
    "--dataset glue/cola": "dataset 'glue/cola' has no configuration cola: name one of sst2, mnli, empty, "
    "null-text, null-label, as in --dataset nyu-mll/glue/sst2",
    "--dataset glue/mnli": "dataset 'glue/mnli' has no split validation or val or dev or test: name one of "
    "train, validation_matched with --validation-split",
    "--dataset glue/empty": "dataset 'glue/empty': one of its splits holds no rows: name another dataset or "
    "configuration",
    "--dataset stub/csv": "dataset 'stub/csv', split validation holds no rows: name another with "
    "--train-split or --validation-split",
    "--dataset glue/null-text": "dataset 'glue/null-text', split train, row 1: the text "
    "is null; fill it in, or delete the row",
    "--dataset nyu-mll/glue/null-label": "dataset 'nyu-mll/glue/null-label', split train, row 1: the label "
    "is null; fill it in, or delete the row",
}


def glue() -> dict[str, bytes]:
    """Files of a dataset with configurations, as the hub has them: a card, and a Parquet file a split."""
    whole = [(f"{i * 7919 % 10007} a {'good' if i % 2 else 'bad'} film", i % 2) for i in range(300)]
    held = [(text + " again", label) for text, label in whole[:6]]
    tables = {
        "sst2": {"train": whole, "validation": held},
        "mnli": {"train": whole[:8], "validation_matched": held[:4]},
        "empty": {"train": whole[:8], "validation": []},
        "null-text": {"train": [("a film", 0), (None, 1)], "validation": whole[:4]},
        "null-label": {"train": [("a film", 0), ("a film", None)], "validation": whole[:4]},
    }
    names = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})
    files, card = {}, ["---", "configs:"]
    for configuration, splits in tables.items():
        card += [f"- config_name: {configuration}", "  data_files:"]
        for split, rows in splits.items():
            card += [f"  - split: {split}", f"    path: {configuration}/{split}-*.parquet"]
            columns = {"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
            content = io.BytesIO()
            table = datasets.Dataset.from_dict(columns, features).data.table
            pyarrow.parquet.write_table(table, content, compression="none", use_dictionary=False)
            files[f"{configuration}/{split}-00000.parquet"] = content.getvalue()
    return {"README.md": "\n".join([*card, "---", ""]).encode(), **files}


@pytest.fixture(scope="module")
def over_http(
    tmp_path_factory, torch_alone, few_sentences
) -> tuple[Path, StubHub, dict[str, dict[str, object]]]:
    """Command lines in one process whose hub is on loopback: what each does, by the line as it is typed."""
    home = tmp_path_factory.mktemp("http")
    cached_gpt2(home / "model")
    snapshot = home / "model" / "hub" / "models--gpt2" / "snapshots" / ("6" * 40)
    gpt2, sst2 = {path.name: path.read_bytes() for path in snapshot.iterdir()}, glue()
    with StubHub() as stub:
        pickle = {**gpt2, "pytorch_model.bin": gpt2["model.safetensors"]}
        del pickle["model.safetensors"]
        stub.repositories = {
            ("models", "gpt2"): gpt2,
            ("models", "stub/pickle"): pickle,
            ("models", "stub/adapter"): {"adapter_config.json": b"{}"},
            ("datasets", "nyu-mll/glue"): sst2,
            ("datasets", "you/reviews"): sst2,
            ("datasets", "stub/csv"): {"train.csv": b"text,label\na,0\nb,1\n", "dev.csv": b"text,label\n"},
        }
        stub.moved = {"reviews": "you/reviews"}
        for fate in [*TOLD, "broke once"]:
            name = "stub/" + fate.replace(" ", "-")
            stub.fates[name] = fate
            stub.repositories |= {("models", name): gpt2, ("datasets", name): sst2}
        in_part = {name: content for name, content in gpt2.items() if name != "model.safetensors"}
        for name in ["gpt2", *(f"in-part/{fate}" for fate in IN_PART)]:
            cached(home, name, in_part)
        stub.fates |= {f"in-part/{fate}": fate for fate in IN_PART}
        models = [f"--model stub/{fate.replace(' ', '-')}" for fate in [*TOLD, "broke once"]]
        lines = ["/befall/gpt2?ill", "/befall/nyu-mll/glue?missing", "--dry-run"]
        lines += [
            "/befall/gpt2?gated",
            "--dry-run --dataset bundled",
            "/befall/gpt2?",
            "/befall/nyu-mll/glue?",
        ]
        lines += [f"{line} --dataset bundled --dry-run --max-length 64" for line in models]
        lines += [f"{line.replace('model', 'dataset')}/sst2 --model bundled --dry-run" for line in models]
        lines += [line + " --dry-run" for line in WRONG]
        lines += [f"--model in-part/{fate} --dry-run" for fate in IN_PART]
        lines += [f"--dataset glue/sst2 --max-length 64 --max-steps 1 --output-dir {home / 'out'}"]
        matched = home / "matched.json"
        finish = f"""
from lora_from_scratch.data.dataset import load_dataset
from lora_from_scratch.data.rows import Selection
found = load_dataset("glue/mnli", Selection(validation_split="validation_matched"))
also = load_dataset("reviews/sst2")
found = [len(found.train), len(found.validation), found.validation_name, len(also.train)]
json.dump(found, open({str(matched)!r}, "w"))
"""
        done = command_lines(
            torch_alone[0],
            home,
            [line.split() for line in lines],
            finish,
            HF_ENDPOINT=stub.endpoint,
            HF_HUB_DOWNLOAD_TIMEOUT="1",
        )
        asked = [line for line in lines if not line.startswith("/befall/")]
        yield home, stub, dict(zip(asked, done, strict=True))


def refused(done: dict[str, object], sentence: str) -> None:
    assert (done["status"], done["stderr"].splitlines(), done["stdout"]) == (2, [f"error: {sentence}"], "")
    assert len(done["stderr"].strip()) <= 200
    assert done["seconds"] < 10  # with a patience of 1 s; unless told otherwise it is 5 s


@pytest.mark.parametrize("fate", TOLD)
def test_each_failure_of_the_hub_has_its_own_sentence(over_http, fate):
    _, _, done = over_http
    name = "stub/" + fate.replace(" ", "-")
    model = TOLD[fate].replace("{}", "model")
    refused(done[f"--model {name} --dataset bundled --dry-run --max-length 64"], model)
    dataset = TOLD[fate].replace("{}", "dataset").replace(f"{name}'", f"{name}/sst2'")
    refused(done[f"--dataset {name}/sst2 --model bundled --dry-run"], dataset)


@pytest.mark.parametrize("fate", IN_PART)
def test_each_failure_is_told_of_a_model_that_is_cached_in_part(over_http, fate):
    _, _, done = over_http
    told = IN_PART[fate].replace("{}", "model").replace("stub/", "in-part/")
    refused(done[f"--model in-part/{fate} --dry-run"], told)


@pytest.mark.parametrize("line", WRONG)
def test_what_the_hub_gives_and_is_no_use(over_http, line):
    _, _, done = over_http
    refused(done[line + " --dry-run"], WRONG[line])


def test_a_pickle_is_never_fetched(over_http):
    _, stub, _ = over_http
    assert not [path for _, path in stub.requests if path.endswith(".bin")]


def test_models_and_datasets_come_over_http_under_their_own_names(over_http):
    home, _, done = over_http
    (line,) = (line for line in done if "--max-steps" in line)
    told = [text for text in done[line]["stderr"].splitlines() if "warning" in text]
    assert done[line]["status"] == 0 and all("always saying" in text for text in told), told
    results = json.loads((home / "out" / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("gpt2", "glue/sst2")
    assert results["data"]["train_sentences"] == 300 and results["data"]["validation_sentences"] == 6
    assert results["data"]["label_names"] == ["negative", "positive"]
    adapter = json.loads((home / "out" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "gpt2"


def test_a_split_and_a_configuration_by_their_names(over_http):
    """MNLI's, and one of a dataset called without its owner: reviews/sst2 is tried as owner/name first."""
    home, _, _ = over_http
    assert json.loads((home / "matched.json").read_text()) == [8, 4, "validation_matched", 300]


def test_a_download_that_breaks_off_once_goes_on(over_http):
    _, _, done = over_http
    for line in (line for line in done if "broke-once" in line):
        assert (done[line]["status"], done[line]["stderr"]) == (0, ""), line


def test_the_bundle_stands_in_for_what_nobody_named_and_nobody_can_help(over_http):
    _, _, done = over_http
    assert done["--dry-run"]["status"] == 0
    said = "No sst2 and gpt2: the hub does not have it, the hub has trouble of its own (503), and its cache"
    assert said in done["--dry-run"]["stdout"]
    gated = done["--dry-run --dataset bundled"]
    assert gated["status"] == 2 and "model 'gpt2' is gated" in gated["stderr"]


def test_trouble_that_is_over_is_not_told_and_another_threads_success_does_not_end_it():
    httpx = import_module(type(default_client_factory()).__module__.partition(".")[0])

    def answer(request: object) -> object:
        return httpx.Response(503 if request.url.path == "/ill" else 200, content=b"a")

    answers = Answers()
    answers.patience = 3600
    client = answers.watched(httpx.Client(transport=httpx.MockTransport(answer), base_url="http://hub"))

    def load(path: str) -> None:
        with client.stream("GET", path) as response:
            list(response.iter_bytes())

    load("/ill")
    elsewhere = threading.Thread(target=load, args=("/well",))
    elsewhere.start()
    elsewhere.join()
    told = answers.failure("model", "a/b", ValueError("cut"))
    assert isinstance(told, NotFound) and "the hub has trouble of its own (503)" in str(told)
    for went_well in (load, partial(client.request, "GET")):
        client.request("GET", "/ill")
        went_well("/well")
        told = answers.failure("model", "a/b", ValueError("cut"))
        assert "model 'a/b' does not load (cut): a file may be empty or damaged" in str(told)


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ({"model.safetensors"}, "its weights"),
        ({"tokenizer.json"}, "its tokenizer"),
        ({"config.json"}, "its config.json"),
    ],
)
def test_a_model_in_the_cache_in_part_is_not_there(cache, lost, part):
    cached_gpt2(cache)
    for name in lost:
        next(cache.glob(f"hub/models--gpt2/snapshots/*/{name}")).unlink()
    named = RunConfig(model="gpt2", dataset="bundled", max_length=64)
    with pytest.raises(NotFound) as caught:
        prepare(named)
    assert str(caught.value) == (
        f"model 'gpt2' is in the hub's cache without {part}, and the hub is out of reach: check the network "
        "and HF_HUB_OFFLINE, or use --model bundled"
    )
    prepared = prepare(RunConfig(dataset="bundled", max_length=64, limit_train=16))
    assert prepared.config.model == "bundled" and list(prepared.substituted) == ["gpt2"]


def test_random_weights_need_no_weights_in_the_cache(cache):
    cached_gpt2(cache)
    next(cache.glob("hub/models--gpt2/snapshots/*/model.safetensors")).unlink()
    prepared = prepare(RunConfig(dataset="bundled", max_length=64, random_init=True, limit_train=16))
    assert prepared.config.model == "gpt2" and prepared.model.name_or_path == "gpt2"


def test_another_configuration_in_the_cache_is_not_the_one_asked_for(cache):
    cached_sst2(cache)
    folder = cache / "datasets" / "nyu-mll___glue"
    (info,) = folder.glob("sst2/*/*/dataset_info.json")
    info.write_text(info.read_text().replace('"sst2"', '"cola"'))
    (folder / "sst2").rename(folder / "cola")
    with pytest.raises(NotFound) as caught:
        load_dataset("sst2")
    assert str(caught.value) == (
        "dataset 'sst2' is in the hub's cache without the configuration sst2, and the hub is out of reach: "
        "check the network and HF_HUB_OFFLINE, or use --dataset bundled"
    )
    assert len(load_dataset("glue/cola").train) == len(load_dataset("nyu-mll/glue/cola").train) == 16


def test_a_dataset_in_the_cache_is_found_without_its_owner(cache):
    cached_sst2(cache)
    folder = (cache / "datasets" / "nyu-mll___glue").rename(cache / "datasets" / "you___reviews")
    for path in list(folder.rglob("glue-*.arrow")):
        path.rename(path.with_name(path.name.replace("glue", "reviews")))
    assert len(load_dataset("reviews/sst2").train) == len(load_dataset("you/reviews/sst2").train) == 16


def test_a_split_without_rows(cache):
    cached_sst2(cache, validation=[])
    with pytest.raises(UserError) as caught:
        load_dataset("sst2")
    assert str(caught.value) == (
        "dataset 'sst2', split validation holds no rows: name another with --train-split or "
        "--validation-split"
    )


def test_a_dataset_of_one_split_but_for_its_hidden_labels(cache):
    """GLUE's test labels are all -1: naming that split is refused, and train can be named too."""
    cached_sst2(cache)
    with pytest.raises(UserError, match="split test, row 0: label '-1' is none of 'negative', 'positive'"):
        load_dataset("sst2", Selection(validation_split="test"))
    with pytest.raises(
        UserError, match="has no split 'dev': name one of train, validation, test with --train"
    ):
        load_dataset("sst2", Selection(train_split="dev"))
    assert len(load_dataset("sst2", Selection(train_split="validation")).train) == 3


def test_a_folder_that_shadows_a_model_of_the_hub_is_said_to(cache, monkeypatch):
    cached_gpt2(cache)
    monkeypatch.chdir(cache)
    (cache / "files").mkdir(exist_ok=True)
    snapshot = next(cache.glob("hub/models--gpt2/snapshots/*"))
    shutil.copytree(snapshot, "gpt2")
    (cache / "hub" / "models--you--film").mkdir()
    shutil.copytree(snapshot, "you/film")
    shutil.copytree(snapshot, "you/other")
    for name in ("gpt2", "you/film"):
        with pytest.warns(UserWarning) as caught:
            load_tokenizer(name)
        (warning,) = caught
        assert str(warning.message) == (
            f"model {name} is the folder ./{name} here, not the hub's: run elsewhere for that one, or say "
            f"--model ./{name}"
        )
    for name in ("./gpt2", "you/other", str(cache / "gpt2")):
        load_tokenizer(name)  # a warning would be an error


@pytest.mark.parametrize("variable", ["HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE"])
def test_a_folder_that_shadows_a_dataset_in_a_cache_is_said_to(tmp_path, monkeypatch, variable):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    below = {"HF_HOME": "hub/", "XDG_CACHE_HOME": "huggingface/hub/", "HF_HUB_CACHE": ""}.get(variable)
    put = "you___film" if below is None else f"{below}datasets--you--film"
    Path("cache", put).mkdir(parents=True)
    for folder in ("film", "film/short", "you/film", "other", "you/other"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    for name, advice in {
        "film": "for that one say --dataset you/film, for yours ./film",
        "film/short": "for that one say --dataset you/film/short, for yours ./film/short",
        "you/film": "run elsewhere for that one, or say --dataset ./you/film",
    }.items():
        with pytest.warns(UserWarning) as caught:
            warn_of_shadow(name)
        told = [str(warning.message) for warning in caught]
        assert told == [f"dataset {name} is ./{name} here, not the hub's: {advice}"]
    for name in ("./film", "you/other", "other", str(tmp_path / "film"), "short"):
        warn_of_shadow(name)  # a warning would be an error


class Answer(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_HEAD(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("status", [200, 404])
def test_any_answer_of_the_hub_counts(monkeypatch, status):
    monkeypatch.setattr(Answer, "status", status)
    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    hub.go_offline_if_unreachable()
    assert "HF_HUB_OFFLINE" not in os.environ
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("silence", [False, True])
def test_a_hub_that_refuses_or_keeps_silent_is_given_up_quickly(monkeypatch, silence):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setenv("HF_HUB_OFFLINE", "put back after the test")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as listener:  # accepts, and never answers
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv(
            "HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}" if silence else CLOSED
        )
        started = time.perf_counter()
        hub.go_offline_if_unreachable()
    assert time.perf_counter() - started < 20
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_torch_is_loaded_while_the_hub_is_waited_for(torch_alone):
    """The answer comes once torch is there; and nothing has read yet whether the hub is."""
    _, found = torch_alone
    assert found["offline"] is None and found["seconds"] < 60 and found["readers"] == []


def test_whoever_set_offline_mode_is_not_asked_again(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_reachable", lambda: pytest.fail("probed"))
    hub.go_offline_if_unreachable()


def test_a_name_lookup_that_hangs_does_not_hold_the_run_up(monkeypatch):
    """urllib's timeout does not cover it; the probe's own does."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)

    over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait(120)
        raise OSError("no such name")

    monkeypatch.setattr(hub.urllib.request, "urlopen", hang)
    started = time.perf_counter()
    hub.go_offline_if_unreachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert time.perf_counter() - started < 20
    over.set()
