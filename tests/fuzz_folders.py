"""Folders of adapters, heads and checkpoints for `fuzz.py`: written here from a tiny model, then damaged."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import peft
import torch
from conftest import randomize_lora, tiny_config
from fuzz_files import Files, altered_json, altered_safetensors, damaged, outcome, require
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2Tokenizer
from transformers.utils import logging

from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.core.lora import LoRALinear
from lora_from_scratch.core.surgery import inject_each
from lora_from_scratch.formats import adapted as formats
from lora_from_scratch.formats import checkpoint, tensors
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.peft import load_adapter, save_adapter

BASE, NAMES = "base", ["bad", "good"]
UPDATES = {
    "transformer.h.0.attn.c_attn": {"rank": 2, "alpha": 4, "dropout": 0.5},
    "transformer.h.0.mlp.c_fc": {"rank": 1, "alpha": 3, "dropout": 0.5},
}


class Folder(NamedTuple):
    """A folder and what its cases may differ in; `sealed`: what loads is what was written."""

    name: str
    sealed: bool

    def make(self, draw: random.Random) -> Files:
        """One file damaged, or several; or with other values in its JSON, which keeps it readable."""
        names = sorted(originals(self.name))
        files = {}
        for name in draw.sample(names, k=draw.choice((1, 1, 1, min(2, len(names))))):
            contents = originals(self.name)[name]
            if draw.random() < (0.3 if self.sealed else 0.6):
                alter = altered_json if name.endswith(".json") else altered_safetensors
                while b"written_by" in contents and b"written_by" not in files.get(name, b""):
                    files[name] = alter(draw, contents)  # one without its seal is somebody else's
                files.setdefault(name, alter(draw, contents))
            else:
                files[name] = damaged(draw, contents)
        return files

    def check(self, files: Files) -> bool:
        folder = Path(self.name)
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        try:
            with mock.patch.multiple(formats, load_tokenizer=_tokenizer, load_model=_model):
                return self._check(folder)
        finally:
            for name in files:
                (folder / name).write_bytes(originals(self.name)[name])

    def _check(self, folder: Path) -> bool:
        if self.name in ("adapter", "peft"):
            self._check_at_hand(folder)
        loaded = outcome(lambda: load_adapted(folder), folder)
        if isinstance(loaded, str):
            return False
        if self.sealed:
            require(
                state(loaded.model) == self.written and loaded.label_names == NAMES, "loaded, and not equal"
            )
            require(loaded.tokenizer.get_vocab() == _tokenizer(BASE).get_vocab(), "another vocabulary")
        return True

    def _check_at_hand(self, folder: Path) -> None:
        """The adapter alone, into a model that is there: one that is refused leaves it as it was."""
        model = _at_hand.pop() if _at_hand else _model(BASE, NAMES)
        before = _before()
        loaded = outcome(lambda: load_adapter(model, folder, _tokenizer(BASE)), folder)
        if isinstance(loaded, str):
            require(state(model) == before, f"refused, and the model is changed: {loaded}")
            _at_hand.append(model)
        elif self.sealed:
            require(state(model.eval()) == self.written, "loaded into a model, and not equal")

    @property
    def written(self) -> object:
        return _written(self.name)


_at_hand: list[nn.Module] = []  # a base that nothing has been put into so far


def state(model: nn.Module) -> tuple[object, ...]:
    """All that a model is: its bits, what learns, the kinds of its modules, its updates, its settings."""
    bits = [(name, tensor.dtype, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()]
    learns = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    kinds = [(name, type(module), module.training) for name, module in model.named_modules()]
    layers = [
        (name, layer.rank, layer.alpha, layer.scaling, layer.rank_stabilized, layer.lora_dropout.p)
        for name, layer in model.named_modules()
        if isinstance(layer, LoRALinear)
    ]
    config = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
    return bits, learns, kinds, layers, config


_INCIDENTAL = {"_name_or_path", "transformers_version", "architectures", "dtype"}


def write() -> None:
    """The folders, where the process is: the base, and what was trained on it in each format."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with mock.patch.multiple(formats, load_tokenizer=_tokenizer, load_model=_model):
        base = _model(BASE, NAMES)
        checkpoint.save(Adapted(base, _tokenizer(BASE), None), Path(BASE))
        lora = inject_each(copy.deepcopy(base), UPDATES, ["score"])
        randomize_lora(lora)
        save_adapter(lora, Path("adapter"), BASE, _tokenizer(BASE))
        Path("head").mkdir()
        head = copy.deepcopy(base).requires_grad_(False)
        head.score.requires_grad_(True)
        tensors.save(Adapted(head, _tokenizer(BASE), BASE), Path("head"))
        checkpoint.save(Adapted(base, _tokenizer(BASE), None), Path("checkpoint"))
        base.save_pretrained("plain")
        _tokenizer(BASE).save_pretrained("plain")
        settings = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
        settings |= {"task_type": "SEQ_CLS", "rank_pattern": {"c_fc": 1}, "layers_to_transform": [0]}
        theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
        theirs.peft_config["default"].base_model_name_or_path = BASE
        theirs.save_pretrained("peft")
        for name in FOLDERS:
            originals(name)
            _written(name)


FOLDERS = {
    folder.name: folder
    for folder in (
        Folder("adapter", sealed=True),
        Folder("head", sealed=True),
        Folder("checkpoint", sealed=True),
        Folder("peft", sealed=False),  # by PEFT
        Folder("plain", sealed=False),  # by transformers
    )
}


@functools.cache
def originals(name: str) -> Files:
    files = [path for path in Path(name).iterdir() if path.suffix in (".json", ".safetensors")]
    return {path.name: path.read_bytes() for path in files if path.name != "generation_config.json"}


@functools.cache
def _written(name: str) -> object:
    """What the folder holds before it is damaged: asked for at once by `write`."""
    return state(load_adapted(Path(name)).model)


@functools.cache
def _before() -> object:
    return state(_model(BASE, NAMES))


@functools.cache
def _base() -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = GPT2ForSequenceClassification(tiny_config(n_layer=1, **named))
    model.name_or_path = model.config.name_or_path = BASE
    return model.eval()


def _model(name: str, labels: list[str] | None, *rest: object) -> GPT2ForSequenceClassification:
    """`load_model`, the base from memory."""
    if name != BASE or labels is None or len(labels) != len(NAMES):
        return load_model(name, labels, *(rest or [0]))
    model = copy.deepcopy(_base())
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model


@functools.cache
def _tiny_tokenizer() -> GPT2Tokenizer:
    tokens = ["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "he", "in", "Ġa"]
    merges = [("h", "e"), ("i", "n"), ("Ġ", "a")]
    tokenizer = GPT2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(name: str) -> GPT2Tokenizer:
    """`load_tokenizer`, the base's from memory."""
    return _tiny_tokenizer() if name == BASE else load_tokenizer(name)
