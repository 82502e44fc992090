"""Every sentence that bad input is answered with: to be read from top to bottom.

A row is what somebody did (arguments of `run.py`, after files were put into an empty folder) and the whole
line that answers it. An error ends with exit status 2 and leaves nothing behind; a warning lets the command
go on. No line has more than 200 characters, and each ends in what to do.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import SHARED
from safetensors.torch import save_file

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.cli import main as cli
from lora_from_scratch.formats import tensors
from lora_from_scratch.formats.adapted import Adapted


class Case(NamedTuple):
    """What somebody did, and the line on stderr."""

    name: str
    arguments: str  # of run.py, split as a shell does
    answer: str  # "error: ..." or "warning: ..."
    files: dict[str, str | bytes] | Callable[[], None] | None = None  # put into the folder first


LOAD = "--model bundled --dry-run --dataset "

ROWS: list[Case] = []

LABELS: list[Case] = []

HUB: list[Case] = []

HEAD = "base_model.model.score.weight"
FIRST = "base_model.model.transformer.h.0.attn.c_attn."
WTE = "base_model.model.transformer.wte."
PREDICT = "predict --model bundled --adapter adapter text"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def case_of(name: str) -> Callable[[], None]:
    """The files of one of the shared cases."""

    def put() -> None:
        if not (folder := SHARED / "cases" / name).exists():
            pytest.skip(f"no {folder}")
        shutil.copytree(folder, ".", dirs_exist_ok=True)

    return put


def adapter(
    folder: str = "adapter",
    tensors: dict[str, tuple[int, ...]] | None = None,
    fill: float = 0.1,
    **keys: object,
) -> Callable[[], None]:
    """An adapter for the bundled base as PEFT writes it, but for some keys, and tensors by shape (): none."""

    def put() -> None:
        shapes = {f"{FIRST.replace('.0.', f'.{i}.')}lora_A.weight": (2, 256) for i in range(4)}
        shapes |= {name.replace("lora_A", "lora_B"): (768, 2) for name in shapes} | {HEAD: (2, 256)}
        shapes |= tensors or {}
        values = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "target_modules": ["c_attn"], **keys}
        Path(folder).mkdir(parents=True)
        Path(folder, "adapter_config.json").write_text(json.dumps(values))
        contents = {name: torch.full(shape, fill) for name, shape in shapes.items() if shape}
        save_file(contents, Path(folder, "adapter_model.safetensors"))

    return put


def several(*puts: Callable[[], None]) -> Callable[[], None]:
    def put_all() -> None:
        for put in puts:
            put()

    return put_all


def with_file(name: str, content: bytes, instead_of: str = "") -> Callable[[], None]:
    def put() -> None:
        adapter()()
        Path(instead_of or name).unlink(missing_ok=True)
        Path(name).write_bytes(content)

    return put


def trained(shape: tuple[int, ...], **metadata: str) -> Callable[[], None]:
    """A file of the format for any method, with a head of that shape."""

    def put() -> None:
        Path("adapter").mkdir()
        save_file(
            {"score.weight": torch.ones(shape)},
            "adapter/trained.safetensors",
            {"base": "bundled", **metadata},
        )

    return put


CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
NO_REGEX = "is no regular expression"
OR_LIST = "write .* for anything, or a list of names"
REGRESSION = "one output, a regression's: only classifiers are adapted here, with an output for each class"
NO_GPT2 = "is no part of GPT-2): this project adapts GPT-2 alone"
RESIZED = "the base has 8192: save the resized base, with its tokenizer, and name it with --model"
PICKLE = "is a pickle, never opened here: weights = torch.load("
UNFIT = "not implemented here: load it with PEFT"
NOT_HERE = "is not implemented here: load it with PEFT"
LFS = "is a git-lfs pointer, not the file itself: fetch it with git lfs pull"
TOGETHER = "see that --model and the files belong together"
TAKE = "take another copy"
PASSED = "passed over, as without effect on the logits"
RID = "delete them there to be rid of this"
BLOCK = "transformer.h.0.attn.c_attn"


def inside(name: str, answer: str, files: object = None, arguments: str = PREDICT) -> Case:
    return Case(name, arguments, answer, files)


UNKNOWN_BASE = "warning: adapter does not say on which base's weights it was trained: "
UNKNOWN_BASE += "make sure that --model names its own"
SEALED = (
    "or a file beside it is damaged, or was changed by hand: they do not have the digest of what was written"
)


def sealed(then: Callable[[], None]) -> Callable[[], None]:
    """A head that this project wrote, and what happened to it afterwards."""

    def put() -> None:
        tokenizer = load_tokenizer("bundled")
        model = load_model("bundled", ["bad", "good"], tokenizer.pad_token_id).requires_grad_(False)
        model.score.requires_grad_(True)
        Path("adapter").mkdir()
        tensors.save(Adapted(model, tokenizer, "bundled"), Path("adapter"))
        then()

    return put


def change(name: str, old: bytes, new: bytes) -> Callable[[], None]:
    return lambda: Path(name).write_bytes(Path(name).read_bytes().replace(old, new)) and None


def flip_the_last_bit() -> None:
    data = bytearray(Path("adapter/trained.safetensors").read_bytes())
    data[-1] ^= 1
    Path("adapter/trained.safetensors").write_bytes(data)


ADAPTERS: list[Case] = [
    inside("adapter-plain", UNKNOWN_BASE, case_of("adapter-plain")),
    inside("adapter-null-modules-to-save", UNKNOWN_BASE, case_of("adapter-null-modules-to-save")),
    inside(
        "adapter-unknown-key",
        f"warning: {CONFIG}: {PASSED}: of_later, zeta; {RID}",
        adapter(zeta=1, of_later={"a": 2}),
    ),
    inside(
        "adapter-training-keys",
        f"warning: {CONFIG}: {PASSED}: eva_config, loftq_config, runtime_config; {RID}",
        adapter(loftq_config={"bits": 4}, eva_config={"rho": 2}, runtime_config={"x": 1}),
    ),
    inside(
        "adapter-many-keys",
        f"warning: {CONFIG}: {PASSED}: a, b, c and 1 more; {RID}",
        adapter(a=1, b=2, c=3, d=4),
    ),
    inside(
        "adapter-glob-not-regex",
        f"error: {CONFIG}: target_modules '*.c_attn' {NO_REGEX} (nothing to repeat at position 0): {OR_LIST}",
        case_of("adapter-glob-not-regex"),
    ),
    inside(
        "adapter-exclude-glob",
        f"error: {CONFIG}: exclude_modules '*.c_fc' {NO_REGEX} (nothing to repeat at position 0): {OR_LIST}",
        adapter(exclude_modules="*.c_fc"),
    ),
    inside(
        "adapter-rank-pattern-no-regex",
        f"error: {CONFIG}: rank_pattern '[' {NO_REGEX} (unterminated character set at position 8): {OR_LIST}",
        adapter(rank_pattern={"[": 2}),
    ),
    inside(
        "adapter-one-output",
        f"error: {WEIGHTS}: score.weight is (1, 256), {REGRESSION}",
        case_of("adapter-one-output"),
    ),
    inside(
        "adapter-one-output-null-modules",
        f"error: {WEIGHTS}: score.weight is (1, 256), {REGRESSION}",
        adapter(tensors={HEAD: (1, 256)}, modules_to_save=None),
    ),
    inside(
        "head-one-output",
        f"error: adapter/trained.safetensors: score.weight is (1, 256), {REGRESSION}",
        trained((1, 256)),
    ),
    inside(
        "adapter-resized-embeddings",
        f"error: {WEIGHTS}: its embeddings were resized to 3 tokens, {RESIZED}",
        case_of("adapter-resized-embeddings"),
    ),
    inside(
        "adapter-resized-by-3",
        f"error: {WEIGHTS}: its embeddings were resized to 8195 tokens, {RESIZED}",
        adapter(tensors={f"{WTE}weight": (8195, 256)}),
    ),
    inside(
        "adapter-resized-under-lora",
        f"error: {WEIGHTS}: its embeddings were resized to 8200 tokens, {RESIZED}",
        adapter(tensors={f"{WTE}base_layer.weight": (8200, 256)}),
    ),
    inside(
        "adapter-overflowing",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        case_of("adapter-overflowing"),
    ),
    inside(
        "adapter-alpha-overflows",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        adapter(lora_alpha=1e39),
    ),
    inside(
        "adapter-product-overflows",
        f"error: {WEIGHTS}: the update of {BLOCK} is not finite in fp32: take an earlier checkpoint",
        adapter(fill=1e20),
    ),
    inside(
        "adapter-in-checkpoint-folder",
        "error: run holds no adapter, but run/checkpoint-500 does: name that folder",
        case_of("adapter-in-checkpoint-folder"),
        "predict --model bundled --adapter run text",
    ),
    inside(
        "adapter-last-checkpoint",
        "error: run holds no adapter, but run/checkpoint-1000 does: name that folder",
        several(adapter("run/checkpoint-1000"), adapter("run/checkpoint-500")),
        "predict --model bundled --adapter run text",
    ),
    inside(
        "adapter-under-its-name",
        "error: out holds no adapter, but out/final/default does: name that folder",
        adapter("out/final/default"),
        "predict --adapter out text",
    ),
    inside(
        "adapter-of-distilbert",
        f"error: adapter: its base is distilbert-base-uncased (classifier.bias {NO_GPT2}",
        case_of("adapter-of-distilbert"),
    ),
    inside(
        "adapter-of-llama",
        f"error: adapter: its base is me/llama (model.layers.0.self_attn.q_proj {NO_GPT2}",
        adapter(
            tensors={"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (2, 8)},
            base_model_name_or_path="me/llama",
        ),
        "predict --adapter adapter text",
    ),
    inside(
        "adapter-of-bert-without-a-name",
        "error: adapter: its base is another architecture "
        f"(bert.encoder.layer.0.attention.self.query {NO_GPT2}",
        adapter(tensors={"base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight": (8, 2)}),
    ),
    inside(
        "adapter-pickle",
        f'error: adapter/adapter_model.bin {PICKLE}"adapter_model.bin", weights_only=True); '
        'safetensors.torch.save_file(weights, "adapter_model.safetensors")',
        with_file("adapter/adapter_model.bin", b"\x80", instead_of=WEIGHTS),
    ),
    inside(
        "checkpoint-pickle",
        f'error: adapter/pytorch_model.bin {PICKLE}"pytorch_model.bin", weights_only=True); '
        'safetensors.torch.save_file(weights, "model.safetensors")',
        {"adapter/config.json": "{}", "adapter/pytorch_model.bin": "\x80"},
    ),
    inside("adapter-lfs-weights", f"error: {WEIGHTS} {LFS}", with_file(WEIGHTS, POINTER)),
    inside("adapter-lfs-config", f"error: {CONFIG} {LFS}", with_file(CONFIG, POINTER)),
    inside(
        "checkpoint-lfs",
        f"error: adapter/model.safetensors {LFS}",
        {"adapter/config.json": "{}", "adapter/model.safetensors": POINTER},
    ),
    inside("adapter-dora", f"error: {CONFIG}: use_dora = True {NOT_HERE}", adapter(use_dora=True)),
    inside("adapter-bias", f"error: {CONFIG}: bias = 'all' {NOT_HERE}", adapter(bias="all")),
    inside(
        "adapter-replication",
        f"error: {CONFIG}: layer_replication = [[0, 4]] {NOT_HERE}",
        adapter(layer_replication=[[0, 4]]),
    ),
    inside(
        "adapter-dora-by-its-tensors",
        f"error: {WEIGHTS}: {FIRST}lora_magnitude_vector belongs to DoRA, {UNFIT}",
        adapter(tensors={f"{FIRST}lora_magnitude_vector": (768,)}),
    ),
    inside(
        "adapter-lora-bias-by-its-tensors",
        f"error: {WEIGHTS}: {FIRST}lora_B.bias belongs to lora_bias, {UNFIT}",
        adapter(tensors={f"{FIRST}lora_B.bias": (768,)}),
    ),
    inside(
        "adapter-rank-text",
        f"error: {CONFIG}: r = '2' is of the wrong kind: see PEFT's LoraConfig",
        adapter(r="2"),
    ),
    inside(
        "adapter-layers-of-a-regex",
        f"error: {CONFIG}: layers_to_transform needs a list of target_modules, as in PEFT: leave one out",
        adapter(target_modules=".*c_attn", layers_to_transform=0),
    ),
    inside(
        "adapter-pattern-of-no-layers",
        f"error: {CONFIG}: layers_pattern needs layers_to_transform, as in PEFT: leave it out",
        adapter(layers_pattern="h"),
    ),
    inside(
        "adapter-of-another-kind",
        f"error: {CONFIG}: peft_type is not LORA, the only kind that is implemented here: train one",
        adapter(peft_type="IA3"),
    ),
    inside(
        "adapter-config-cut",
        f"error: {CONFIG}: cannot be read as JSON (Expecting value: line 1 column 1 (char 0)): {TAKE}",
        with_file(CONFIG, b""),
    ),
    inside(
        "adapter-weights-cut",
        f"error: {WEIGHTS}: not a whole safetensors file "
        f"(Error while deserializing header: header too small): {TAKE}",
        with_file(WEIGHTS, b"1234"),
    ),
    inside(
        "adapter-a-target-too-many",
        f"error: {WEIGHTS}: base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight is missing: {TOGETHER}",
        adapter(target_modules=["c_attn", "c_fc"]),
    ),
    inside(
        "adapter-a-layer-too-few",
        f"error: {WEIGHTS}: unexpected tensor {FIRST.replace('.0.', '.1.')}lora_A.weight: {TOGETHER}",
        adapter(layers_to_transform=[0, 2, 3]),
    ),
    inside(
        "adapter-targets-nothing",
        f"error: {CONFIG}: target_modules ['q_proj'] matches nothing in this model: "
        "name its own base with --model",
        adapter(target_modules=["q_proj"]),
    ),
    inside(
        "adapter-without-a-head",
        f"error: {WEIGHTS}: the classifier head, score.weight, is missing: train with task_type SEQ_CLS",
        adapter(tensors={HEAD: ()}, task_type="CAUSAL_LM"),
    ),
    inside(
        "head-labels-damaged",
        "error: adapter/trained.safetensors: the label names are damaged "
        f"(not a list of different names): {TAKE}",
        trained((2, 256), labels="3"),
    ),
    inside(
        "head-labels-too-many",
        f"error: adapter/trained.safetensors: 3 label names, but score.weight is (2, 256): {TAKE}",
        trained((2, 256), labels='["a", "b", "c"]'),
    ),
    inside(
        "head-a-bit-flipped",
        f"error: adapter/trained.safetensors {SEALED}; {TAKE}",
        sealed(flip_the_last_bit),
    ),
    inside(
        "head-a-label-changed",
        f"error: adapter/trained.safetensors {SEALED}; {TAKE}",
        sealed(change("adapter/trained.safetensors", b"good", b"mood")),
    ),
    inside(
        "rank-above-the-width",
        f"warning: rank 257 is above 256, the width of {BLOCK}: "
        "no update has a higher rank, so that rank does as much",
        None,
        f"{LOAD} bundled --rank 257",
    ),
    inside(
        "rank-of-a-million",
        "error: rank 1000000 is above 6144: A and B would dwarf W0; take a small one, such as 4",
        None,
        f"{LOAD} bundled --rank 1000000",
    ),
    inside(
        "rank-of-a-narrow-layer",
        "error: rank 2049 is above 2048: A and B would dwarf W0; take a small one, such as 4",
        None,
        f"{LOAD} bundled --rank 2049 --target-modules attn.c_proj",
    ),
]

AFTERWARDS: list[Case] = []

FRONT_DOOR: list[Case] = []


@pytest.mark.filterwarnings("always::UserWarning")  # to be printed, not raised
@pytest.mark.parametrize(
    "case", ROWS + LABELS + HUB + ADAPTERS + AFTERWARDS + FRONT_DOOR, ids=lambda c: c.name
)
def test_the_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if callable(case.files):
        case.files()
    else:
        for name, content in (case.files or {}).items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(tmp_path.rglob("*"))
    try:
        status = cli.main(shlex.split(case.arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "warning: "))
    ]
    assert case.answer in lines
    assert len(case.answer) <= 200
    if case.answer.startswith("error: "):
        assert (status, lines) == (2, [case.answer])
        assert sorted(tmp_path.rglob("*")) == before
