"""The probe, the hub's cache, and what stands in when there is neither; runs in processes of their own."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pytest
import torch
from conftest import tiny_config
from datasets.arrow_writer import ArrowWriter
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from lora_from_scratch.base import reachable as hub
from lora_from_scratch.base.load import load_tokenizer

ROOT = Path(__file__).parents[1]
CLOSED = "http://127.0.0.1:9"  # a port where nobody listens


def python(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python` in the project's folder with its own cache, and a hub that does not answer."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "HF_HOME": str(home), "HF_ENDPOINT": CLOSED},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


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
    repository = home / "hub" / "models--gpt2"
    snapshot = repository / "snapshots" / ("6" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("6" * 40)
    files = home / "files"
    load_tokenizer("bundled").save_pretrained(files)
    model.config.save_pretrained(files)
    save_file({**weights, **masks}, files / "model.safetensors", metadata={"format": "pt"})
    for i, path in enumerate(sorted(files.iterdir())):
        blob = repository / "blobs" / f"{i:040x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return weights


def cached_sst2(home: Path) -> None:
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


@pytest.fixture(scope="module")
def from_cache(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor], subprocess.CompletedProcess[str]]:
    """A run on what the cache holds, and after it, in the same process, gpt2's weights as they are loaded."""
    home = tmp_path_factory.mktemp("cache")
    weights = cached_gpt2(home)
    cached_sst2(home)
    out = str(home / "out")
    flags = ["--method", "none", "--max-length", "64", "--output-dir", out, "--precision", "fp32"]
    code = f"""
import runpy, sys
sys.argv = ["run.py", *{flags!r}]
try:
    runpy.run_path("run.py", run_name="__main__")
except SystemExit as stop:
    if stop.code:
        raise
from safetensors.torch import save_file
from lora_from_scratch.base.load import load_model
save_file(load_model("gpt2", ["0", "1"], 0).state_dict(), {str(home / "loaded.safetensors")!r})
"""
    return home, weights, python(home, "-c", code)


def test_gpt2_and_sst2_load_from_the_hubs_cache(from_cache):
    home, weights, done = from_cache
    assert done.returncode == 0, done.stderr
    assert "out of reach" not in done.stdout
    results = json.loads((home / "out" / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("gpt2", "sst2")
    assert results["data"]["train_sentences"] == 16 and results["data"]["validation_sentences"] == 3
    assert results["data"]["validation_name"] == "validation"
    assert results["data"]["label_names"] == ["negative", "positive"]
    assert results["total_parameters"] == sum(tensor.numel() for tensor in weights.values()) + 32
    assert round(results["accuracy"] * 3 / 100, 9) in (0, 1, 2, 3)


def test_weights_from_the_cache_arrive_as_they_are(from_cache):
    home, weights, done = from_cache
    assert done.returncode == 0, done.stderr
    loaded = load_file(home / "loaded.safetensors")
    loaded = {name.removeprefix("transformer."): tensor for name, tensor in loaded.items()}
    assert set(loaded) == {*weights, "score.weight"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


@pytest.fixture(scope="module")
def without_hub(tmp_path_factory) -> tuple[Path, list[dict[str, object]]]:
    """Command lines one after the other in one process that finds neither hub nor cache: what each one does.

    Their outputs are caught where the operating system takes them, whoever writes.
    """
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
    code = f"""
import json, os, sys, tempfile, time
started = time.perf_counter()
from lora_from_scratch.cli.main import main
answers, done = os.fdopen(os.dup(1), "w"), []
for line in {lines!r}:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        status = main(line)
        sys.stdout.flush(), sys.stderr.flush()
        out.seek(0), err.seek(0)
        seconds = time.perf_counter() - started
        done.append(dict(status=status, stdout=out.read(), stderr=err.read(), seconds=seconds))
print(json.dumps(done), file=answers)
"""
    return home, json.loads(python(home, "-c", code).stdout)


def test_without_hub_or_cache_the_bundle_stands_in_and_says_so(without_hub):
    home, (done, *_) = without_hub
    assert done["status"] == 0, done["stderr"]
    assert done["seconds"] < 60
    assert "The hub is out of reach and its cache does not hold sst2 and gpt2" in done["stdout"]
    assert "mini-gpt2 (bundled) on mini-reviews (bundled)" in done["stdout"]
    results = json.loads((home / "first" / "results.json").read_text())
    assert (results["model"], results["dataset"]) == ("mini-gpt2 (bundled)", "mini-reviews (bundled)")
    noise = [line for line in done["stderr"].splitlines() if line.strip() and "it/s" not in line]
    noise = [line for line in noise if "always saying" not in line]  # of a result after so few steps
    assert not [line for line in noise if "retry" in line.lower() or "warn" in line.lower() or "http" in line]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (1, "model 'gpt2' is neither here nor in the hub's cache"),
        (2, "dataset 'sst2' is neither here nor in the hub's cache"),
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
    assert "its cache does not hold gpt2: this run" in done[3]["stdout"]
    assert f"mini-gpt2 (bundled) on {home / 'mine.tsv'}" in done[3]["stdout"]


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
