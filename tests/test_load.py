"""GPT-2 from the bundle and from folders: weights, head, padding, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from lora_from_scratch import UserError
from lora_from_scratch.base import fingerprint, model_files
from lora_from_scratch.base.load import BUNDLED_MODEL, load_model, load_tokenizer
from lora_from_scratch.base.model_files import aligned, open_weights, stored_weights
from lora_from_scratch.errors import NotFound

LABELS = ["negative", "positive"]


@pytest.fixture
def folder(tmp_path):
    """A tiny pretrained language model as a folder."""
    torch.manual_seed(0)
    GPT2LMHeadModel(tiny_config()).save_pretrained(tmp_path)
    return tmp_path


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_bundled_model_keeps_its_pretrained_weights():
    model = load_model("bundled", LABELS, 0, generator())
    saved = load_file(BUNDLED_MODEL / "model.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        if name != "score.weight":
            assert torch.equal(tensor, saved[name].float())
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}


def test_the_head_is_drawn_from_its_generator_alone(folder):
    def head(global_seed: int, seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        return load_model(str(folder), LABELS, 0, generator(seed)).score.weight.detach()

    assert torch.equal(head(0, 0), head(1, 0))
    assert not torch.equal(head(0, 0), head(0, 1))
    wide = load_model("bundled", LABELS, 0, generator()).score.weight
    assert wide.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_head_in_the_files_is_kept_if_it_fits_and_drawn_anew_if_not(folder, tmp_path):
    first = load_model(str(folder), LABELS, 0, generator(5))
    first.save_pretrained(tmp_path / "classifier")
    again = load_model(str(tmp_path / "classifier"), LABELS, 0, generator(6))
    assert torch.equal(again.score.weight, first.score.weight)
    three = load_model(str(tmp_path / "classifier"), ["a", "b", "c"], 0, generator(6))
    assert three.score.weight.shape == (3, 16)
    assert three.score.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert torch.equal(three.transformer.wte.weight, first.transformer.wte.weight)


def test_random_init_reads_the_configuration_alone(folder):
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    model = load_model(str(folder), ["a", "b", "c"], 7, generator(), random_init=True)
    assert model.score.weight.shape == (3, 16) and model.config.pad_token_id == 7


def test_gpt2_tokenizer_from_vocabulary_and_merges(shared):
    tokenizer = load_tokenizer(str(shared / "gpt2"))
    assert len(tokenizer) == 50_257
    assert (tokenizer.pad_token_id, tokenizer.padding_side) == (50_256, "right")
    assert tokenizer("a good film", add_special_tokens=False).input_ids == [64, 922, 2646]


@pytest.mark.parametrize("name", ["bundled", "random"])
def test_logits_do_not_depend_on_padding_or_company(name, tiny_gpt2):
    """Right padding, left padding with position ids, none, and any batch company: equal to 1e-5 in fp32."""
    model = tiny_gpt2 if name == "random" else load_model("bundled", LABELS, 0, generator()).eval()
    sentences = [[5], [3, 4, 5, 6, 7, 8, 9], [11, 12, 13], [20, 21, 22, 23]]

    def logits(rows: list[list[int]], left: bool = False, positions: bool = True) -> torch.Tensor:
        longest = max(map(len, rows))
        pads = [[0] * (longest - len(row)) for row in rows]
        real = [[1] * len(row) for row in rows]
        join = (lambda pad, row: pad + row) if left else (lambda pad, row: row + pad)
        mask = torch.tensor([join(pad, ones) for pad, ones in zip(pads, real, strict=True)])
        ids = torch.tensor([join(pad, row) for pad, row in zip(pads, rows, strict=True)])
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if left and positions else {}
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, **options).logits

    alone = torch.cat([logits([row]) for row in sentences])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(logits(sentences), alone, **close)
    torch.testing.assert_close(logits(sentences, left=True), alone, **close)
    torch.testing.assert_close(logits([*sentences[2:], [9] * 20])[:2], alone[2:], **close)
    # The published table's mistake: left padding without position ids reads real tokens at other positions.
    moved = (logits(sentences, left=True, positions=False) - alone).abs().amax(dim=1)
    assert moved[1] < 1e-5 and moved[[0, 2, 3]].min() > 1e-3


def corrupt_config(folder):
    (folder / "config.json").write_text("{ not json")


def other_architecture(folder):
    BertConfig().save_pretrained(folder)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][:5].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def stored_as(dtype, name="transformer.h.1.mlp.c_fc.weight"):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors.get(name, torch.zeros(2, 16)).to(dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def pickle_the_weights(folder):
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def configured(**values: object) -> Callable[[Path], None]:
    """config.json with these values."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def pointer(name: str) -> Callable[[Path], None]:
    """What git leaves of a large file without git-lfs."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 548105171\n"
    return lambda folder: (folder / name).write_text(text)


def infinite(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"][3, 3] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pointer("model.safetensors"), "model.safetensors: only a pointer of git-lfs.*with git lfs pull"),
        (pointer("config.json"), "config.json: only a pointer of git-lfs, not the file; fetch it"),
        (infinite, "transformer.wpe.weight holds a value that is not finite"),
        (configured(n_embd=9999999999), r"config.json is damaged \(n_embd is 9999999999\)"),
        (configured(hidden_size=-16), r"damaged \(hidden_size is -16\)"),
        (configured(n_layer=900), "config.json asks for 900 blocks, but its weights have 2"),
        (configured(num_labels=10**9), r"damaged \(num_labels is 1000000000\)"),
        (
            configured(n_embd=32),
            "transformer.h.0.attn.c_attn.bias and .* others are missing .*or not in the shape",
        ),
        (configured(n_positions=100_000), "transformer.wpe.weight is missing from its weights"),
        (configured(n_head=0), r"damaged \(n_head is 0\)"),
        (configured(n_head=3), "config.json is damaged"),
        (configured(n_inner=[64]), r"damaged \(n_inner is \[64\]\)"),
        (configured(activation_function="gel"), "config.json is damaged"),
        (configured(resid_pdrop=None), "config.json is damaged"),
        (
            configured(id2label={"1": "a", "2": "b"}),
            "id2label in config.json has the ids 1, 2: number them from 0",
        ),
        (
            configured(id2label={"0": "a", "2": "b"}),
            "id2label in config.json has the ids 0, 2: number them from 0",
        ),
        (
            configured(id2label={"no": "a", "yes": "b"}),
            "id2label in config.json has the ids no, yes: number them from 0",
        ),
        (configured(id2label={"0": "a", "1": None}), "id2label in config.json is no table of names"),
        (configured(id2label=["a", "b"]), "id2label in config.json is no table of names"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"{}\xff"), "config.json is damaged"),
        (lambda folder: (folder / "config.json").write_text("[1]"), r"damaged \(not an object\)"),
        (lambda folder: (folder / "config.json").write_text("{}"), r"damaged \(no model_type\)"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (corrupt_config, "config.json is damaged"),
        (
            configured(quantization_config={"quant_method": "gptq", "bits": 4}),
            "has quantised weights, which are not read here .* quantise that by --base-precision",
        ),
        (configured(quantization_config={"load_in_8bit": True}), "has quantised weights"),
        (configured(quantization_config=3), "has quantised weights"),
        (other_architecture, "is of type bert: this project adapts GPT-2 alone"),
        (truncate, "weights of model .* cannot be read"),
        (drop_a_tensor, "transformer.h.1.mlp.c_fc.weight is missing"),
        (reshape_a_tensor, "transformer.wpe.weight is missing from its weights, or not in the shape"),
        (stored_as(torch.int8), r"transformer\.h\.1\.mlp\.c_fc\.weight holds I8: save it in a floating"),
        (stored_as(torch.float8_e4m3fn), "c_fc.weight holds F8_E4M3: save it"),
        (stored_as(torch.complex64), "c_fc.weight holds C64: save it"),
        (stored_as(torch.int64, "score.weight"), "score.weight holds I64: save it"),
        (pickle_the_weights, r"has its weights in a pickle alone \(pytorch_model.bin\)"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(str(folder), LABELS, 0)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_width_are_taken(folder, dtype):
    stored_as(dtype)(folder)
    assert load_model(str(folder), LABELS, 0).transformer.h[1].mlp.c_fc.weight.dtype == torch.float32


def test_label_names_of_a_checkpoint_come_in_the_order_of_their_ids(folder):
    load_model(str(folder), ["a", "b", "c"], 0).save_pretrained(folder)
    configured(id2label={"2": "low", "0": "high", "1": "mid"})(folder)
    assert load_model(str(folder), None, 0).config.id2label == {0: "high", 1: "mid", 2: "low"}


def test_weights_in_shards(folder):
    whole = load_model(str(folder), LABELS, 0, generator())
    (folder / "model.safetensors").unlink()
    whole.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    again = load_model(str(folder), LABELS, 0)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))
    lost = max(folder.glob("model-*-of-*.safetensors"))
    lost.unlink()
    with pytest.raises(UserError, match=f"has no {lost.name}: fetch it"):
        load_model(str(folder), LABELS, 0)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json is damaged"):
        load_model(str(folder), LABELS, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files["tokenizer.json"].pop("model"), "has no tokenizer that loads"),
        (lambda files: files["tokenizer.json"].update(version="\0"), r"that loads .* version '\\x00'"),
        (lambda files: files["tokenizer.json"]["model"]["vocab"].update(film=90_000), "tokenizer has 90001"),
        (lambda files: files["tokenizer_config.json"].update(model_max_length="long"), "that loads"),
        (lambda files: files["tokenizer_config.json"].update(tokenizer_class=7), "that loads"),
    ],
)
def test_a_damaged_tokenizer(tmp_path, change, message):
    GPT2LMHeadModel(tiny_config(vocab_size=8192)).config.save_pretrained(tmp_path)
    load_tokenizer("bundled").save_pretrained(tmp_path)
    names = ("tokenizer.json", "tokenizer_config.json")
    files = {name: json.loads((tmp_path / name).read_text()) for name in names}
    change(files)
    for name in names:
        (tmp_path / name).write_text(json.dumps(files[name]))
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", __file__])
def test_a_path_that_is_no_folder_is_not_looked_up_on_the_hub(name):
    with pytest.raises(NotFound, match="is not a folder"):
        load_model(name, LABELS, 0)


def test_an_unknown_hub_id_out_of_reach_of_the_hub():
    for load in (lambda: load_model("no-such-model", LABELS, 0), lambda: load_tokenizer("no/model")):
        with pytest.raises(NotFound, match="is neither here nor cached, and the hub is out of reach"):
            load()


def test_a_tokenizer_too_large_for_the_model(folder):
    load_tokenizer("bundled").save_pretrained(folder)
    with pytest.raises(UserError, match="embeddings of 50 tokens, but its tokenizer has 8192"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer(folder):
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(str(folder))


def test_the_model_saves_as_a_plain_checkpoint(folder, tmp_path):
    model = load_model(str(folder), LABELS, 0, generator())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.score.weight, model.score.weight)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["id2label"] == {
        "0": "negative",
        "1": "positive",
    }


def test_transformers_own_forward_runs_on_a_base_that_asks_for_tuples(folder):
    """Its classifier takes its own model's answer apart by name, and fails on a tuple."""
    configured(return_dict=False)(folder)
    model = load_model(str(folder), LABELS, 0)
    assert model(torch.tensor([[3, 4, 5]])).logits.shape == (1, 2)


def halved(folder: Path) -> Path:
    """Kept in fp16, under the names of a base without a head: no `transformer.` before them."""
    tensors = load_file(folder / "model.safetensors")
    bare = {key.removeprefix("transformer."): tensor.half() for key, tensor in tensors.items()}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("change", [lambda folder: folder, halved])
@pytest.mark.parametrize("mapped", [False, True])
def test_weights_are_had_once_more(folder, change, mapped):
    change(folder)
    model = load_model(str(folder), LABELS, 0, generator())
    names = ["transformer.wte.weight", "transformer.h.1.mlp.c_fc.bias"]
    again = dict(stored_weights("tiny", folder, names, mapped))
    assert list(again) == names
    for name, tensor in again.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, model.get_parameter(name))
        assert mapped or tensor.data_ptr() % 64 == 0


def test_every_weight_begins_where_a_cache_line_does(folder):
    model = load_model(str(folder), LABELS, 0, generator())
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}
    taken = torch.arange(40.0)[1:]
    assert aligned(taken).data_ptr() % 64 == 0 and torch.equal(aligned(taken), taken)
    assert aligned(model.score.weight) is model.score.weight


def test_files_that_are_no_longer_as_they_were(folder):
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"the weights of model 'tiny' cannot be read: .*; copy them anew"):
        list(stored_weights("tiny", folder, ["transformer.wte.weight"]))
    GPT2LMHeadModel(tiny_config(n_layer=1)).save_pretrained(folder)
    with pytest.raises(
        UserError, match=r"the weights of model 'tiny' cannot be read: .*h.1.*; copy them anew"
    ):
        list(stored_weights("tiny", folder, ["transformer.h.1.mlp.c_fc.bias"]))


@pytest.mark.parametrize(
    "error", [MemoryError("3 GB"), RuntimeError("can't allocate memory"), TypeError("we")]
)
def test_what_is_no_fault_of_the_files_is_not_called_one(folder, monkeypatch, error):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(GPT2ForSequenceClassification, "from_pretrained", fails)
    with pytest.raises(type(error)) as caught:
        load_model(str(folder), LABELS, 0)
    assert caught.value is error


def test_a_file_that_ends_while_it_is_read_is_told(folder, monkeypatch):
    def cut_off(folder: Path) -> dict[str, object]:
        weights = open_weights(folder)
        os.truncate(folder / "model.safetensors", 4096)
        return weights

    monkeypatch.setattr(model_files, "open_weights", cut_off)
    with pytest.raises(UserError, match=r"the weights of model .* cannot be read: .*; copy them anew"):
        load_model(str(folder), LABELS, 0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="a system that does not say what is mapped")
def test_a_loaded_model_has_memory_of_its_own_and_what_is_mapped_has_none(folder):
    """Of a mapped file, what was looked at is resident until the last of its weights is gone."""

    def is_mapped() -> bool:
        return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()

    model = load_model(str(folder), LABELS, 0, generator())
    assert not is_mapped()
    (_, weight), *_ = stored_weights("tiny", folder, ["transformer.wte.weight"], mapped=True)
    assert is_mapped() and torch.equal(weight, model.transformer.wte.weight)


def test_a_digest_does_not_depend_on_how_many_weights_are_rounded_at_a_time(tiny_gpt2, monkeypatch):
    digest = fingerprint.weights_fingerprint(tiny_gpt2)
    monkeypatch.setattr(fingerprint, "PART", 7)
    assert fingerprint.weights_fingerprint(tiny_gpt2) == digest
    with torch.no_grad():
        tiny_gpt2.transformer.wte.weight[-1, -1] += 1
    assert fingerprint.weights_fingerprint(tiny_gpt2) != digest
