"""PEFT as the oracle: the same training step for step, the same files, the same merge."""

from __future__ import annotations

import copy
import json
import warnings
from contextlib import nullcontext

import peft
import pytest
import torch
from conftest import randomize_lora, tiny_config
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from lora_from_scratch import RunConfig, adapt, inject_lora, load_adapter, merge_lora, save_adapter
from lora_from_scratch.core import loop
from lora_from_scratch.core.surgery import lora_layers
from lora_from_scratch.data.batches import TokenizedExamples, pad_batch
from lora_from_scratch.methods.interface import decay_matrices
from lora_from_scratch.train.optimizer import make_optimizer, make_schedule
from lora_from_scratch.train.precision import make_scaler
from lora_from_scratch.train.training import Course, train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about transformers

TARGET_SETS = [("attn.c_attn",), ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"), ("c_proj",)]
INPUT_IDS = torch.arange(1, 25).view(3, 8)


def base_model(labels: int = 2) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    config = tiny_config(num_labels=labels, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def in_peft(model: nn.Module, targets: tuple[str, ...], rank: int, alpha: float = 8) -> peft.PeftModel:
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=alpha, target_modules=list(targets), fan_in_fan_out=True
    )
    return peft.get_peft_model(model, config)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def in_peft_terms(name: str) -> str:
    """A parameter of ours under the name that PEFT gives it."""
    name = name.replace("lora_A", "lora_A.default.weight").replace("lora_B", "lora_B.default.weight")
    return "base_model.model." + name.replace("score.", "score.modules_to_save.default.")


def load_quietly(model: nn.Module, folder: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not say on which base")
        return load_adapter(model, folder)


@pytest.mark.parametrize("targets", TARGET_SETS[:2])
def test_fifty_steps_give_the_same_weights(targets, tiny_examples: TokenizedExamples):
    """Our loop against the simplest one around PEFT, in float64, from the same A, B and head."""
    steps, lr = 50, 1e-2
    ours = adapt(base_model(), RunConfig(rank=3, alpha=8, dropout=0.0, target_modules=targets)).double()
    randomize_lora(ours)
    theirs = in_peft(base_model(), targets, rank=3).double()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                theirs.get_parameter(in_peft_terms(name)).copy_(parameter)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}

    one_batch = TokenizedExamples(  # the loop then has one batch, so both sides see the same order
        tiny_examples.token_ids, tiny_examples.lengths, tiny_examples.labels, 0
    )
    train(
        ours,
        one_batch,
        Course(
            epochs=steps,
            batch_size=len(one_batch),
            lr=lr,
            weight_decay=0.1,
            precision=torch.float32,
            generator=torch.Generator().manual_seed(0),
        ),
    )

    trainable = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.1)
    order = tiny_examples.lengths.argsort()
    padded = nn.utils.rnn.pad_sequence(
        [tiny_examples.token_ids.split(tiny_examples.lengths.tolist())[i] for i in order], batch_first=True
    )
    theirs.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        scores = theirs(input_ids=padded, attention_mask=(padded != 0).long()).logits
        nn.functional.cross_entropy(scores, tiny_examples.labels[order]).backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    moved = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs.get_parameter(in_peft_terms(name))
            torch.testing.assert_close(parameter, expected, rtol=1e-9, atol=1e-12)
            moved += not torch.allclose(parameter, start[name], atol=1e-2)
    assert moved == sum(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("targets", TARGET_SETS)
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_files_go_both_ways(tmp_path, rank, targets, labels):
    base = base_model(labels)
    above_the_width = pytest.warns(UserWarning, match="rank 64 is above 16") if rank == 64 else nullcontext()
    with above_the_width:
        ours = inject_lora(copy.deepcopy(base), targets, rank, alpha=8)
    ours.requires_grad_(False)
    for name, parameter in ours.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("score."))
    randomize_lora(ours)
    expected = logits(ours)
    assert (expected - logits(base)).abs().max() > 0.01
    save_adapter(ours, tmp_path / "ours")

    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "ours"))
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=1e-6)

    theirs.save_pretrained(str(tmp_path / "theirs"))
    back = load_quietly(copy.deepcopy(base), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=1e-6)


def test_a_loaded_adapter_with_dropout_gives_pefts_logits(tmp_path):
    """Into a model as from_pretrained gives it, in eval mode: no dropout, here as there."""
    base_model().save_pretrained(tmp_path / "base")
    base = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    ours = adapt(copy.deepcopy(base), RunConfig(rank=4, dropout=0.5))
    randomize_lora(ours)
    save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    expected = logits(theirs)
    assert (expected - logits(base)).abs().max() > 0.01
    back = load_adapter(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=1e-6)
    assert (logits(back.train()) - expected).abs().max() > 0.01  # dropout is there, for training


@pytest.mark.parametrize("targets", TARGET_SETS)
def test_merging_is_the_same(tmp_path, targets):
    theirs = in_peft(base_model(), targets, rank=4)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "score.modules_to_save" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(str(tmp_path))
    ours = merge_lora(load_quietly(base_model(), tmp_path)).state_dict()
    merged = theirs.merge_and_unload().state_dict()
    assert ours.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_the_two_files_are_those_that_peft_writes(tmp_path):
    base_model().save_pretrained(tmp_path / "base")
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    theirs = in_peft(copy.deepcopy(model), ("attn.c_attn",), rank=4, alpha=16)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name or "score.modules_to_save" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = load_quietly(model, tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")

    tensors = [load_file(tmp_path / side / "adapter_model.safetensors") for side in ("ours", "theirs")]
    assert tensors[0].keys() == tensors[1].keys()
    for name, tensor in tensors[1].items():
        assert tensors[0][name].dtype == tensor.dtype and torch.equal(tensors[0][name], tensor)
    configs = [
        json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")
    ]
    assert len(configs[0]) >= 12
    assert configs[0] == {key: configs[1][key] for key in configs[0]}


def test_prelayer_loads_in_peft(tmp_path):
    base = base_model()
    ours = adapt(copy.deepcopy(base), RunConfig(method="prelayer"))
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    assert (logits(ours) - logits(base)).abs().max() > 0.05
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=0, atol=1e-6)
    back = load_adapter(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(back), logits(ours)) and not list(lora_layers(back))
    trained = {name for name, parameter in back.named_parameters() if parameter.requires_grad}
    assert trained == {"transformer.wte.weight", "transformer.wpe.weight", "score.weight"}


def test_a_model_of_linear_layers(tmp_path):
    """Not every base is a GPT-2: nn.Linear layers, a head of another name, no configuration at all."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
            self.classifier = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.inner:
                x = torch.tanh(layer(x))
            return self.classifier(x)

    torch.manual_seed(0)
    base, x = Net(), torch.randn(5, 6)
    ours = inject_lora(copy.deepcopy(base).requires_grad_(False), ["inner.0", "inner.1"], rank=2, alpha=3)
    ours.classifier.requires_grad_(True)
    randomize_lora(ours)
    save_adapter(ours, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is False and config["modules_to_save"] == ["classifier"]
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
    torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(load_adapter(base, tmp_path)(x), ours(x), rtol=0, atol=0)


OF_OTHERS = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
OF_OTHERS |= {"num_attention_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("build", "targets", "head"),
    [
        (lambda: BertForSequenceClassification(BertConfig(**OF_OTHERS)), ["query", "value"], "classifier"),
        (lambda: LlamaForSequenceClassification(LlamaConfig(**OF_OTHERS)), ["q_proj", "v_proj"], "score"),
    ],
    ids=["bert", "llama"],
)
def test_bert_and_llama_learn_by_the_loop_with_a_forward_of_their_own(build, targets, head, tmp_path):
    """As docs/commands.md shows it, with files that PEFT reads."""

    def forward(model: nn.Module, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        real = torch.arange(input_ids.shape[1]) < lengths[:, None]
        return model(input_ids, attention_mask=real.long()).logits

    torch.manual_seed(0)
    base = build().eval()
    ours = inject_lora(copy.deepcopy(base), targets, rank=2, alpha=8, modules_to_save=[head])
    learning = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert len(learning) == 2 * 2 * 2 + len(list(ours.get_submodule(head).parameters()))
    optimizer = make_optimizer(decay_matrices(ours.parameters(), 0.0), 0.01)
    parts = make_schedule(optimizer, 3), make_scaler(torch.float32, torch.device("cpu")), torch.float32
    examples = TokenizedExamples(torch.arange(1, 13), torch.tensor([5, 7]), torch.tensor([0, 1]), 0)
    before = {name: parameter.clone() for name, parameter in ours.named_parameters()}
    steps = [[pad_batch(examples, torch.arange(2))]] * 2
    assert len(list(loop.train(loop.TrainState(ours, optimizer, *parts, forward), steps))) == 2
    moved = {name for name, p in ours.eval().named_parameters() if not torch.equal(p, before[name])}
    assert moved == learning
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    for model in (theirs, load_adapter(base, tmp_path), merge_lora(copy.deepcopy(ours))):
        torch.testing.assert_close(model(INPUT_IDS).logits, ours(INPUT_IDS).logits, rtol=0, atol=1e-6)
