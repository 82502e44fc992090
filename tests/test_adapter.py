"""Nothing silently wrong: what does not fit the base, or is damaged, is refused by name. (PEFT's side: see
test_against_peft.py.)"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import randomize_lora, tiny_config
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2ForSequenceClassification

from lora_from_scratch import RunConfig, UserError, adapt, inject_lora, load_adapter, save_adapter
from lora_from_scratch.base.fingerprint import (
    config_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from lora_from_scratch.base.load import load_model, load_tokenizer
from lora_from_scratch.core.surgery import inject_each, lora_layers
from lora_from_scratch.formats.adapted import Adapted, load_adapted
from lora_from_scratch.formats.table import format_named

FIRST_A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
SCORE = "base_model.model.score.weight"


@pytest.fixture
def saved(tiny_gpt2, tmp_path) -> tuple[GPT2ForSequenceClassification, Path]:
    """The untouched base, and the folder of an adapter that was trained on it."""
    base = copy.deepcopy(tiny_gpt2)
    adapted = adapt(tiny_gpt2, RunConfig(rank=2))
    randomize_lora(adapted)
    save_adapter(adapted, tmp_path, base_name="somewhere")
    return base, tmp_path


def rewrite(folder: Path, change: object) -> None:
    """Let `change` edit the tensors in place; the metadata stays."""
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


def configure(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Whatever happens in the block, the model's modules, tensors and what learns stay as they are."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning = [(name, p.requires_grad) for name, p in model.named_parameters()]
    yield
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == learning


def test_what_comes_back_is_what_was_saved(tmp_path, tiny_gpt2):
    base = copy.deepcopy(tiny_gpt2)
    config = RunConfig(rank=3, alpha=5.5, dropout=0.25, target_modules=("c_attn", "mlp.c_proj"))
    adapted = adapt(tiny_gpt2, config)
    randomize_lora(adapted)
    save_adapter(adapted, tmp_path)
    back = load_adapter(base, tmp_path)
    expected = adapted.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    trainable = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (back, adapted)]
    assert trainable[0] == trainable[1]
    for _, layer in lora_layers(back):
        assert (layer.rank, layer.alpha, layer.lora_dropout.p) == (3, 5.5, 0.25)


def test_layers_that_share_no_suffix_are_named_in_full(tiny_gpt2, tmp_path):
    base = copy.deepcopy(tiny_gpt2)
    name = "transformer.h.1.attn.c_attn"
    randomize_lora(inject_lora(tiny_gpt2.requires_grad_(False), [name], rank=2, alpha=4))
    save_adapter(tiny_gpt2, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [name]
    assert [layer for layer, _ in lora_layers(load_adapter(base, tmp_path))] == [name]


def test_a_layer_whose_whole_name_ends_another_is_named_by_a_regex(tmp_path):
    """A list would name three, here and in PEFT. A folder may be a string, as there."""
    inner = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    base = nn.ModuleDict({"proj": nn.Linear(4, 4), "inner": inner, "gate": nn.Linear(4, 4)})
    model = inject_each(copy.deepcopy(base), {name: {"rank": 2, "alpha": 4} for name in ("proj", "gate")})
    randomize_lora(model)
    save_adapter(model, str(tmp_path))
    back = load_adapter(copy.deepcopy(base), str(tmp_path))
    assert [name for name, _ in lora_layers(back)] == ["proj", "gate"]
    assert all(torch.equal(layer.lora_B, model[name].lora_B) for name, layer in lora_layers(back))
    base.config = {"model_type": "custom"}
    in_peft = PeftModel.from_pretrained(base, str(tmp_path))
    adapted = [name for name, module in in_peft.named_modules() if hasattr(module, "lora_A")]
    assert adapted == ["base_model.model.proj", "base_model.model.gate"]


def test_layers_that_differ_in_dropout_fit_no_file(tiny_gpt2, tmp_path):
    inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4)
    next(layer for _, layer in lora_layers(tiny_gpt2)).lora_dropout.p = 0.5
    with pytest.raises(UserError, match="differ in dropout"):
        save_adapter(tiny_gpt2, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is not LORA"),
        ({"r": "4"}, "r = '4' is of the wrong kind"),
        ({"target_modules": ["q_proj"]}, r"\['q_proj'\] matches nothing"),
        ({"target_modules": ["wte"]}, "target transformer.wte is of type Embedding"),
        ({"target_modules": "transformer.h.0.attn.c_attn"}, "unexpected tensor .*h.1.attn.c_attn.lora_A"),
        ({"target_modules": ["c_attn", "c_fc"]}, "h.0.mlp.c_fc.lora_A.weight is missing"),
        ({"r": 3}, r"h.0.attn.c_attn.lora_A.weight is \(2, 16\), expected \(3, 16\)"),
        ({"modules_to_save": ["score", "wpe"]}, "wpe.weight is missing"),
    ],
)
def test_a_configuration_that_does_not_fit(saved, changes, message):
    base, folder = saved
    configure(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_adapter(base, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(FIRST_A), "h.0.attn.c_attn.lora_A.weight is missing"),
        (lambda t: t.pop(SCORE), "score.weight is missing"),
        (lambda t: t.update({FIRST_A: torch.ones(2, 17)}), r"is \(2, 17\), expected \(2, 16\)"),
        (lambda t: t.update({SCORE: torch.ones(3, 16)}), r"\(3, 16\), expected \(2, 16\) \(another number"),
        (lambda t: t.update({"base_model.model.x.weight": torch.ones(1)}), "unexpected .*model.x.weight"),
        (lambda t: t.update({"stray": torch.ones(1)}), "unexpected tensor stray"),
        (lambda t: t.update({"a\nb\x1b": torch.ones(1)}), r"unexpected tensor a\\nb\\x1b: see"),
        (lambda t: t[FIRST_A].fill_(float("nan")), "lora_A.weight holds a value that is not finite"),
        (
            lambda t: t.update({FIRST_A: torch.full((2, 16), 1e300, dtype=torch.float64)}),
            "holds a value that is not finite",
        ),
        (lambda t: t.update({SCORE: torch.ones(2, 16, dtype=torch.int8)}), "holds torch.int8: save it"),
        (
            lambda t: t.update({SCORE: torch.ones(2, 16, dtype=torch.complex64)}),
            "holds torch.complex64: save it",
        ),
        (lambda t: t.update({SCORE: torch.ones(2, 16).to(torch.float8_e4m3fn)}), "holds torch.float8_e4m3fn"),
        (lambda t: t.update({FIRST_A: torch.ones(0, 16)}), r"is \(0, 16\), expected \(2, 16\)"),
        (lambda t: t[FIRST_A].fill_(3e38), "update of transformer.h.0.attn.c_attn is not finite in fp32"),
        (lambda t: t[SCORE].view(-1)[3:4].add_(1e-6), "was changed by hand"),
        (lambda t: t[SCORE].view(-1)[3:4].fill_(float("inf")), "score.weight holds a value that is not"),
    ],
)
def test_tensors_that_do_not_fit(saved, change, message):
    base, folder = saved
    rewrite(folder, change)
    with unchanged(base), pytest.raises(UserError, match=message):
        load_adapter(base, folder)


def cut(data: bytes) -> bytes:
    return data[:-7]


def flip(data: bytes) -> bytes:
    return data[:9] + bytes(b ^ 0xFF for b in data[9:12]) + data[12:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: data[:8]])
def test_damaged_files(saved, damage):
    base, folder = saved
    for name, message in (
        ("adapter_model.safetensors", "not a whole safetensors file"),
        ("adapter_config.json", "cannot be read as JSON"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(whole))
        with pytest.raises(UserError, match=f"{name}: {message}"):
            load_adapter(base, folder)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name}: no such file"):
            load_adapter(base, folder)
        (folder / name).write_bytes(whole)
    load_adapter(base, folder)


def test_another_base_is_refused(saved):
    base, folder = saved
    with torch.no_grad():
        base.transformer.h[1].mlp.c_fc.weight[3, 5] += 0.05
    with pytest.raises(UserError, match="trained on a base with other weights"):
        load_adapter(base, folder)


def test_another_tokenizer_is_refused(tiny_gpt2, tmp_path):
    base, tokenizer = copy.deepcopy(tiny_gpt2), load_tokenizer("bundled")
    save_adapter(adapt(tiny_gpt2, RunConfig(rank=2)), tmp_path, tokenizer=tokenizer)
    load_adapter(copy.deepcopy(base), tmp_path, tokenizer)
    tokenizer.add_tokens(["zzz"])
    with pytest.raises(UserError, match="another tokenizer"):
        load_adapter(base, tmp_path, tokenizer)


def test_files_that_do_not_name_their_base_load_with_a_warning(saved):
    base, folder = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="does not say on which base"):
        load_adapter(base, folder)


def test_the_fingerprint_is_of_the_base_alone():
    torch.manual_seed(0)
    base = GPT2ForSequenceClassification(tiny_config())
    digest = weights_fingerprint(base, ["score.weight"])
    adapted = adapt(copy.deepcopy(base), RunConfig(rank=2))
    randomize_lora(adapted)
    torch.nn.init.ones_(adapted.score.weight)
    assert weights_fingerprint(adapted, ["score.weight"]) == digest
    assert weights_fingerprint(copy.deepcopy(base).bfloat16(), ["score.weight"]) == digest
    assert weights_fingerprint(adapted) != digest
    names = [name for name, _ in base.named_parameters() if name != "score.weight"]
    for name in names:  # every weight counts
        other = copy.deepcopy(base)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[-1] += 0.5
        assert weights_fingerprint(other, ["score.weight"]) != digest


def test_the_tokenizers_fingerprint_sees_how_it_cuts():
    tokenizer = load_tokenizer("bundled")
    digest = tokenizer_fingerprint(tokenizer)
    assert digest == tokenizer_fingerprint(load_tokenizer("bundled"))
    tokenizer.backend_tokenizer.normalizer = None
    assert tokenizer_fingerprint(tokenizer) != digest


@pytest.mark.parametrize("method", ["lora", "head"])
def test_what_an_earlier_version_wrote_gives_the_same_logits(method):
    """Trained, saved and read by 0.1.0 on the bundled base; full and prelayer are too large to keep."""
    folder = Path(__file__).parent / "written_by_0.1.0"
    expected = json.loads((folder / "logits.json").read_text())
    adapted = load_adapted(folder / method)
    for text, logits in zip(expected["texts"], expected[method], strict=True):
        with torch.no_grad():
            ours = adapted.model(input_ids=adapted.tokenizer(text, return_tensors="pt").input_ids).logits[0]
        torch.testing.assert_close(ours, torch.tensor(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": 0}, "lora_alpha = 0 is of the wrong kind: it has to be a number above 0"),
        ({"lora_alpha": 5}, "was changed by hand"),
        ({"lora_dropout": 0.25}, "was changed by hand"),
        ({"use_rslora": True}, "was changed by hand"),
        ({"lora_dropout": "0.1"}, "lora_dropout = '0.1' is of the wrong kind"),
        ({"target_modules": "*.c_attn"}, "is no regular expression"),
    ],
)
def test_a_refused_adapter_leaves_the_model_as_it_was(saved, changes, message):
    base, folder = saved
    configure(folder, **changes)
    with unchanged(base), pytest.raises(UserError, match=message):
        load_adapter(base, folder)


def test_an_adapter_on_weights_that_are_shared_is_refused_before_the_model_is_touched(saved):
    base, folder = saved
    base.transformer.h[1].attn.c_attn.weight = base.transformer.h[0].attn.c_attn.weight
    rewrite(folder, lambda tensors: None)
    with unchanged(base), pytest.raises(UserError):
        load_adapter(base, folder)


@pytest.mark.parametrize("modules", [["h.0.ln_1", "score"], ["h.1", "score"], ["ln_f", "score"]])
def test_modules_that_learn_whole_come_back_whatever_shares_their_last_name(tiny_gpt2, tmp_path, modules):
    base = copy.deepcopy(tiny_gpt2)
    inject_lora(tiny_gpt2, ["h.0.attn.c_attn"], rank=2, alpha=4, modules_to_save=modules)
    randomize_lora(tiny_gpt2)
    with torch.no_grad():
        for parameter in tiny_gpt2.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_adapter(tiny_gpt2, tmp_path)
    back, expected = load_adapter(base, tmp_path).state_dict(), tiny_gpt2.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.items())


@pytest.fixture(scope="module")
def in_every_format(tmp_path_factory) -> Path:
    """A tiny classifier in the folders peft, tensors and checkpoint, on the base in the folder base."""
    folder, tokenizer = tmp_path_factory.mktemp("formats"), load_tokenizer("bundled")
    torch.manual_seed(0)
    GPT2ForSequenceClassification(tiny_config(vocab_size=8192)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for format, method in (("peft", "lora"), ("tensors", "head"), ("checkpoint", "full")):
        model = load_model(str(folder / "base"), ["bad", "good"], tokenizer.pad_token_id)
        (folder / format).mkdir()
        adapted = Adapted(adapt(model, RunConfig(method=method)), tokenizer, str(folder / "base"))
        format_named(format).save(adapted, folder / format)
    return folder


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new)


def flip_at(data: bytes, place: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("peft/adapter_model.safetensors", lambda data: flip_at(data, -1)),
        ("peft/adapter_model.safetensors", lambda data: flip_at(data, -500)),
        ("peft/adapter_model.safetensors", lambda data: changed(data, b"good", b"mood")),
        (
            "peft/adapter_model.safetensors",
            lambda data: changed(data, b"contents_sha256", b"contents_sha257"),
        ),
        ("peft/adapter_config.json", lambda data: changed(data, b'"lora_alpha": 16', b'"lora_alpha": 17')),
        ("peft/adapter_config.json", lambda data: changed(data, b"lora_dropout", b"lora_drupout")),
        ("tensors/trained.safetensors", lambda data: flip_at(data, -1)),
        ("tensors/trained.safetensors", lambda data: changed(data, b"good", b"mood")),
        ("checkpoint/model.safetensors", lambda data: flip_at(data, -1)),
        ("checkpoint/config.json", lambda data: changed(data, b"good", b"mood")),
        ("checkpoint/config.json", lambda data: changed(data, b'"n_head": 2', b'"n_head": 4')),
        ("checkpoint/tokenizer.json", lambda data: flip_at(data, len(data) // 2)),
    ],
)
def test_a_bit_that_flips_is_noticed(in_every_format, tmp_path, file, change):
    folder = tmp_path / file.split("/")[0]
    shutil.copytree(in_every_format / folder.name, folder)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match="damaged, or was changed by hand"):
        load_adapted(folder)


@pytest.mark.parametrize("format", ["peft", "tensors", "checkpoint"])
def test_a_seal_outlives_a_move_and_equal_contents_are_equal_bytes(in_every_format, tmp_path, format):
    adapted = load_adapted(in_every_format / format)
    assert adapted.label_names == ["bad", "good"]
    for i in range(3):  # a hash map's order would differ in one of them
        (tmp_path / str(i)).mkdir()
        base = Adapted(adapted.model, adapted.tokenizer, str(in_every_format / "base"))
        format_named(format).save(base, tmp_path / str(i))
        for path in (tmp_path / str(i)).iterdir():
            assert path.read_bytes() == (in_every_format / format / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "labels",
    ["3", "null", "{}", "[1, 2]", '["a", ["b"]]', '["a", "a"]', "[" * 9999, '["a", "\\ud83d"]', "", "1e999"],
)
@pytest.mark.parametrize("format", ["peft", "tensors"])
def test_damaged_label_names_are_one_line(in_every_format, tmp_path, format, labels):
    folder = tmp_path / format
    shutil.copytree(in_every_format / format, folder)
    path = folder / format_named(format).FILES[-1 if format == "peft" else 0]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "labels": labels})
    with pytest.raises(UserError, match="label names are damaged"):
        load_adapted(folder)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"1": "bad", "2": "good"}, "id2label needs a name for each id from 0 to 1"),
        ({"0": "bad", "2": "good"}, "id2label needs a name for each id from 0 to 1"),
        ({"0": "only"}, "the model has 1 outputs, a regression's"),
    ],
)
def test_label_ids_that_do_not_start_at_0_are_refused(in_every_format, tmp_path, labels, message):
    model = load_adapted(in_every_format / "checkpoint").model
    model.config.id2label = {int(key): name for key, name in labels.items()}
    with pytest.raises(UserError, match=message):
        _ = Adapted(model, None, None).label_names


def test_the_fingerprint_covers_what_the_configuration_changes_and_saved_buffers(tiny_gpt2):
    digest = config_fingerprint(tiny_gpt2)
    assert digest == config_fingerprint(adapt(copy.deepcopy(tiny_gpt2), RunConfig(rank=2)))
    for key, value in (
        ("n_head", 4),
        ("activation_function", "relu"),
        ("n_positions", 64),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
    ):
        other = copy.deepcopy(tiny_gpt2)
        setattr(other.config, key, value)
        assert config_fingerprint(other) != digest, key
    same = copy.deepcopy(tiny_gpt2)
    same.config.id2label, same.config.pad_token_id, same.config.resid_pdrop = {0: "x", 1: "y"}, 7, 0.3
    assert config_fingerprint(same) == digest
    for persistent in (True, False):
        other = copy.deepcopy(tiny_gpt2)
        other.register_buffer("mean", torch.ones(3, dtype=torch.bfloat16), persistent=persistent)
        assert (config_fingerprint(other) == digest) == (not persistent)


def test_another_configuration_is_refused_where_the_files_tell(saved):
    base, folder = saved
    base.config.n_head = 4
    with unchanged(base), pytest.raises(UserError, match="trained on a base with another configuration"):
        load_adapter(base, folder)
    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:  # what versions before wrote
        metadata = {key: file.metadata()[key] for key in ("format", "base_weights", "labels")}
    save_file(load_file(path), path, metadata)
    load_adapter(base, folder)


def test_a_module_whose_name_ends_as_one_that_learns_is_saved_with_it(tmp_path):
    """PEFT takes `classifier` for every name that ends so, and asks for DistilBERT's `pre_classifier`."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.pre_classifier, self.classifier = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.pre_classifier(self.q(x)).relu())

    adapted = inject_lora(Model(), ["q"], rank=2, alpha=4, modules_to_save=["classifier"])
    randomize_lora(adapted)
    with torch.no_grad():
        adapted.classifier.weight.add_(1)
    save_adapter(adapted, tmp_path, "somewhere")
    x = torch.randn(3, 4)
    theirs = PeftModel.from_pretrained(Model(), str(tmp_path)).eval()
    for model in (load_adapter(Model(), tmp_path), theirs):
        torch.testing.assert_close(model(x), adapted(x), rtol=0, atol=1e-6)
    both = inject_lora(Model(), ["q", "pre_classifier"], rank=2, alpha=4, modules_to_save=["classifier"])
    with pytest.raises(UserError, match=r"pre_classifier.*has LoRA, and its name ends as"):
        save_adapter(both, tmp_path / "both", "somewhere")
    assert not (tmp_path / "both").exists()


def test_a_head_that_was_frozen_again_is_saved_all_the_same(tiny_gpt2, tmp_path):
    base = copy.deepcopy(tiny_gpt2)
    adapted = inject_lora(tiny_gpt2, ["attn.c_attn"], rank=2, alpha=4, modules_to_save=["score"])
    randomize_lora(adapted)
    with torch.no_grad():
        adapted.score.weight.add_(1)
    save_adapter(adapted.requires_grad_(False), tmp_path, base_name="somewhere")
    assert torch.equal(load_adapter(base, tmp_path).score.weight, adapted.score.weight)
