"""One run, from flags to results: RunConfig -> load -> adapt -> train -> evaluate -> RunResult."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import asdict, dataclass, replace

import numpy
import torch
import transformers
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerBase

import lora_from_scratch
from lora_from_scratch.batches import TokenizedExamples, bucketed_batches, padding_efficiency, tokenize
from lora_from_scratch.config import BUNDLED, DEFAULT_DATASET, DEFAULT_MODEL, RunConfig
from lora_from_scratch.dataset import Dataset, load_dataset
from lora_from_scratch.errors import UserError
from lora_from_scratch.evaluate import Score, predict_logits, score
from lora_from_scratch.measure import Memory, ParameterCount, count_parameters, read_memory, reset_peak_memory
from lora_from_scratch.methods import adapt, default_lr, keep_frozen_in_bf16
from lora_from_scratch.model import NotFound, load_model, load_tokenizer
from lora_from_scratch.occurring import occurring_rows
from lora_from_scratch.packed import packed_layers
from lora_from_scratch.train import Training, train

EPOCHS = 2
BUNDLED_EPOCHS = 16  # the bundled sentences are few

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step, on its device; `config` has every open choice filled in."""

    config: RunConfig
    model: GPT2ForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    dataset: Dataset
    train_examples: TokenizedExamples
    validation_examples: TokenizedExamples
    substituted: tuple[str, ...]  # what the hub did not give and the bundle stands in for

    @property
    def model_name(self) -> str:
        name = "mini-gpt2 (bundled)" if self.config.model == BUNDLED else self.config.model
        return f"{name}, random weights" if self.config.random_init else name

    @property
    def dataset_name(self) -> str:
        return "mini-reviews (bundled)" if self.config.dataset == BUNDLED else self.config.dataset


@dataclass(frozen=True)
class RunResult:
    """What came out of a run. `as_dict` is what `results.json` holds."""

    prepared: Prepared
    parameters: ParameterCount
    score: Score
    memory: Memory
    training: Training | None  # None where nothing was trained

    def as_dict(self) -> dict[str, object]:
        prepared, training = self.prepared, self.training
        seconds = training.seconds if training else 0.0
        return {
            "method": prepared.config.method,
            "model": prepared.model_name,
            "dataset": prepared.dataset_name,
            "accuracy": self.score.accuracy,
            "accuracy_margin_95": self.score.margin,
            "f1": self.score.f1,
            "trainable_parameters": self.parameters.trainable,
            "adapter_parameters": self.parameters.adapter,
            "head_parameters": self.parameters.head,
            "total_parameters": self.parameters.total,
            "train_seconds": seconds,
            "phase_seconds": training.phases if training else {},
            "sentences_per_second": training.sentences / seconds if training else None,
            "tokens_per_second": training.tokens / seconds if training else None,
            "padding_efficiency": training.padding_efficiency if training else None,
            "steps": training.steps if training else 0,
            "memory": asdict(self.memory),
            "config": asdict(prepared.config),
            "environment": environment(torch.device(prepared.config.device)),
            "data": {
                "fingerprint": prepared.dataset.fingerprint(),
                "train_sentences": len(prepared.train_examples),
                "train_truncated": prepared.train_examples.truncated,
                "validation_sentences": len(prepared.validation_examples),
                "validation_truncated": prepared.validation_examples.truncated,
                "validation_name": prepared.dataset.validation_name,
                "label_names": prepared.dataset.label_names,
            },
        }


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose, so that what one draws moves none of the others."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def prepare(config: RunConfig) -> Prepared:
    """Load data, tokenizer and model, adapt the model to the method, and tokenize.

    A model or dataset that the config does not name comes from the hub or its cache, and if it is not to be
    had there, from the bundle.

    Raises:
        UserError: whatever is wrong with what was asked for; nothing has been trained or written yet.
    """
    torch.manual_seed(config.seed)
    device = resolve_device(config.device)
    dataset_name, dataset = _load_dataset(config)
    model_name, tokenizer, model = _load_base(config, dataset)
    substituted = []
    if config.dataset is None and dataset_name == BUNDLED:
        substituted.append(DEFAULT_DATASET)
    if config.model is None and model_name == BUNDLED:
        substituted.append(DEFAULT_MODEL)
    if config.max_length > model.config.n_positions:
        raise UserError(
            f"--max-length {config.max_length}: this model has {model.config.n_positions} positions"
        )
    config = replace(
        config,
        model=model_name,
        dataset=dataset_name,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        lr=config.lr or default_lr(config.method, model.config.n_embd),
        epochs=config.epochs or (BUNDLED_EPOCHS if dataset_name == BUNDLED else EPOCHS),
    )
    adapt(model, config, generator_for(config.seed, "adapter"))
    if config.precision == "bf16":
        keep_frozen_in_bf16(model)

    train_split = dataset.train
    if config.limit_train is not None and config.limit_train < len(train_split):
        order = torch.randperm(len(train_split), generator=generator_for(config.seed, "subset"))
        train_split = train_split.take(order[: config.limit_train].tolist())
    return Prepared(
        config,
        model.to(device),
        tokenizer,
        dataset,
        tokenize(tokenizer, train_split.sentences, train_split.labels, config.max_length),
        tokenize(tokenizer, dataset.validation.sentences, dataset.validation.labels, config.max_length),
        tuple(substituted),
    )


def _load_dataset(config: RunConfig) -> tuple[str, Dataset]:
    name = config.dataset or DEFAULT_DATASET
    try:
        return name, load_dataset(name, config.text_column, config.label_column)
    except NotFound:
        if config.dataset is not None:
            raise
        return BUNDLED, load_dataset(BUNDLED)


def _load_base(
    config: RunConfig, dataset: Dataset
) -> tuple[str, PreTrainedTokenizerBase, GPT2ForSequenceClassification]:
    def load(name: str) -> tuple[str, PreTrainedTokenizerBase, GPT2ForSequenceClassification]:
        tokenizer = load_tokenizer(name)
        generator = generator_for(config.seed, "head")
        model = load_model(name, dataset.label_names, tokenizer.pad_token_id, generator, config.random_init)
        return name, tokenizer, model

    try:
        return load(config.model or DEFAULT_MODEL)
    except NotFound:
        if config.model is not None:
            raise
        return load(BUNDLED)


def run(config: RunConfig) -> RunResult:
    """Prepare, train and evaluate one run. Nothing is printed but progress, and nothing is written."""
    return execute(prepare(config))


def execute(prepared: Prepared) -> RunResult:
    """Train and evaluate what `prepare` made ready."""
    config, model = prepared.config, prepared.model
    device, precision = torch.device(config.device), DTYPES[config.precision]
    reset_peak_memory(device)
    training = None
    if config.method != "none":
        training = train_prepared(prepared)
    memory = read_memory(device)
    logits = predict_logits(model, prepared.validation_examples, precision=precision)
    if not logits.isfinite().all():
        raise UserError("the adapted model's logits are not finite: a lower --lr may help")
    labels = prepared.validation_examples.labels
    return RunResult(
        prepared,
        count_parameters(model),
        score(logits.argmax(dim=1), labels, len(prepared.dataset.label_names)),
        memory,
        training,
    )


def train_prepared(prepared: Prepared) -> Training:
    """Train what `prepare` made ready: of the embeddings the rows that occur, past frozen layers packed."""
    config, model = prepared.config, prepared.model
    torch.manual_seed(config.seed)  # dropout's draws, whatever loading drew before
    precision = DTYPES[config.precision]
    with (
        occurring_rows(model, prepared.train_examples) as occurring,
        packed_layers(model, precision),
    ):
        training = train(
            model,
            occurring.examples,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            weight_decay=config.weight_decay,
            precision=precision,
            generator=generator_for(config.seed, "order"),
            max_steps=config.max_steps,
        )
        occurring.decay = training.decay
    return training


def epoch_plan(prepared: Prepared) -> dict[str, float]:
    """What one epoch holds: sentences, steps, real tokens, and the padding efficiency of its batches."""
    lengths = prepared.train_examples.lengths
    generator = generator_for(prepared.config.seed, "order")
    batches = bucketed_batches(lengths, prepared.config.batch_size, generator)
    return {
        "sentences": len(lengths),
        "steps": len(batches),
        "tokens": int(lengths.sum()),
        "padding_efficiency": padding_efficiency(lengths, batches),
    }


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU if there is one.

    Raises:
        UserError: PyTorch has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"--device {name}: PyTorch cannot use it here ({str(error).splitlines()[0]})"
        ) from error


def resolve_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"


def environment(device: torch.device) -> dict[str, object]:
    """Hardware and versions, so that a figure can be read years later."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lora_from_scratch": lora_from_scratch.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }
