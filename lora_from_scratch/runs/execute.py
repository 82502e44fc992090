"""Train what was prepared, and evaluate what will be saved."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from statistics import mean

import torch
from transformers import GPT2ForSequenceClassification

from lora_from_scratch.base.fingerprint import names_in_base
from lora_from_scratch.base.quantised import kept_weights
from lora_from_scratch.core.gpt2 import classify as plain_classify
from lora_from_scratch.core.loop import Forward
from lora_from_scratch.errors import UserError, quoted
from lora_from_scratch.fast.embedding_rows import Occurring
from lora_from_scratch.fast.gpt2 import classify as fast_classify
from lora_from_scratch.fast.switch import fast_training
from lora_from_scratch.formats.tensors import copy_into
from lora_from_scratch.runs.config import RunConfig
from lora_from_scratch.runs.prepare import Prepared, generator_for, prepare
from lora_from_scratch.runs.random_draws import limited
from lora_from_scratch.runs.record import run_record
from lora_from_scratch.train.checkpoints import Checkpoints
from lora_from_scratch.train.device import deterministic
from lora_from_scratch.train.evaluate import Evaluation, Score, evaluate, positive_id, validate
from lora_from_scratch.train.log import Training
from lora_from_scratch.train.measure import tensor_bytes
from lora_from_scratch.train.precision import DTYPES
from lora_from_scratch.train.processes import processes, whole
from lora_from_scratch.train.training import Course, train
from lora_from_scratch.train.trouble import LossNotFinite

STEPS_TOLD = 20  # fewer say nothing of a learning rate
EVALUATION = "fp32"  # whatever training computed in: what predict, merge and PEFT compute in


@dataclass(frozen=True)
class RunResult:
    """What came out of a run. `as_dict` is what `results.json` holds."""

    prepared: Prepared
    training: Training | None  # None where nothing was trained
    evaluation: Evaluation

    @property
    def score(self) -> Score:
        return self.evaluation.score

    def as_dict(self) -> dict[str, object]:
        return run_record(self.prepared, self.training, self.evaluation, None)


def run(config: RunConfig) -> RunResult:
    """Prepare, train and evaluate one run. Nothing is printed but progress, and nothing is written.

    The model comes back in eval mode, the base under it in fp32.
    """
    return execute(prepare(config))


def execute(prepared: Prepared, checkpoints: Checkpoints | None = None) -> RunResult:
    """Train and evaluate what `prepare` made ready."""
    training = train_prepared(prepared, checkpoints)
    evaluation = evaluate_prepared(prepared)
    warn_of_rate(prepared, training, evaluation)
    return RunResult(prepared, training, evaluation)


def warn_of_rate(prepared: Prepared, training: Training | None, evaluation: Evaluation) -> None:
    """Tell in one line where the learning rate was of no use: the loss did not fall, or one class is left."""
    if training is None or training.steps < STEPS_TOLD:
        return
    losses, tenth = [row["loss"] for row in training.metrics], training.steps // 10
    first, last = mean(losses[:tenth]), mean(losses[-tenth:])
    classes = sorted(set(evaluation.predictions))
    config = prepared.config
    usual = config.way.default_lr(prepared.model.config.n_embd)
    default = "the default" if config.lr == usual else f"the default here is {usual:g}"
    if last > 1.05 * first:  # a smaller rise is chance where nothing was learned
        seen, advice = f"the loss rose from {first:.2f} to {last:.2f}", "try a lower one"
    elif last > first:
        seen, advice = f"the loss did not fall from {first:.2f}", "try more --epochs or a higher one"
    elif len(classes) == 1:
        seen = f"every prediction is {quoted(prepared.dataset.label_names[classes[0]])}"
        advice = "try more --epochs or another one" if config.lr == usual else "try that"
    else:
        return
    warnings.warn(f"{seen} at --lr {config.lr:g} ({default}); {advice}", stacklevel=2)


def train_prepared(prepared: Prepared, checkpoints: Checkpoints | None = None) -> Training | None:
    """Train what `prepare` made ready, fast or plain; None where the method trains nothing.

    With checkpoints it can be interrupted, and goes on from the one they were made with.

    Under bf16 fast training leaves the frozen weights rounded: `evaluate_prepared` puts the whole ones back.
    `--eval-every` measures in training's own precision, over the weights as they are rounded then; so in fp32
    its last figures are those of `evaluate_prepared`, in bf16 nearly.
    """
    config, model, examples = prepared.config, prepared.model, prepared.train_examples
    if not config.way.trains:
        return None
    _check_processes(prepared, checkpoints)
    torch.manual_seed(_dropout_seed(config.seed))  # whatever loading drew before
    precision = DTYPES[config.precision]
    training_model = copy.deepcopy(model) if config.shard else model
    stored = prepared.base_weights
    fast = nullcontext(Occurring(examples))
    if not (config.plain or config.shard):
        fast = fast_training(model, examples, precision, stored)
    with _told_by_sentence(prepared), deterministic(config.deterministic), fast as occurring:
        course = _course(prepared, training_model, occurring, checkpoints)
        training = train(training_model, occurring.examples, course)
        occurring.decay = training.decay
    if config.shard:
        copy_into(model, {name: whole(p.detach()) for name, p in training_model.named_parameters()})
    weights = tensor_bytes(kept_weights(model)) - occurring.spared_bytes
    parts = {"weights": weights, **training.memory.parts}
    return replace(training, memory=replace(training.memory, parts=parts))


def _course(
    prepared: Prepared,
    model: GPT2ForSequenceClassification,
    occurring: Occurring,
    checkpoints: Checkpoints | None,
) -> Course:
    config, precision = prepared.config, DTYPES[prepared.config.precision]

    def validated(decay: dict[str, float]) -> dict[str, float | None]:
        with occurring.all_rows(decay):
            return validate(model, prepared.validation_examples, precision, config.plain)

    forward = _forward(model, config)  # before the groups: sharding makes other parameters
    return Course(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        precision=precision,
        generator=generator_for(config.seed, "order"),
        max_steps=config.max_steps,
        groups=config.way.parameter_groups(model, config.settings, config.weight_decay),
        forward=forward,
        gradient_accumulation=config.gradient_accumulation,
        validate=validated if config.eval_every else None,
        eval_every=config.eval_every,
        checkpoints=checkpoints,
        rows=occurring.rows,
    )


def _forward(model: GPT2ForSequenceClassification, config: RunConfig) -> Forward:
    """The forward pass that training takes; of several processes it exchanges gradients."""
    forward = plain_classify if config.plain else fast_classify
    if processes().count == 1:
        return forward
    from lora_from_scratch.train.parallel import Replicated, Sharded  # a second

    return (
        Sharded(model, forward, torch.device(config.device)) if config.shard else Replicated(model, forward)
    )


def _check_processes(prepared: Prepared, checkpoints: Checkpoints | None) -> None:
    """UserError where several processes would not train the same, or cannot share the model out."""
    together, shard = processes(), prepared.config.shard
    if together.count == 1:
        if shard:
            raise UserError("--shard shares a model out over processes; start several with torchrun")
        return
    if shard and (
        prepared.config.eval_every or not all(p.requires_grad for p in prepared.model.parameters())
    ):
        raise UserError("--shard is for methods by which everything learns, and without --eval-every")
    config = {**prepared.config.as_dict(), "device": None, "output_dir": None}
    resumed = checkpoints.resumed.steps if checkpoints and checkpoints.resumed else 0
    together.check_equal("settings", repr(config))
    together.check_equal("sentences", prepared.dataset.fingerprint())
    together.check_equal("base", prepared.base_digest)
    together.check_equal("checkpoint to go on from, in a folder that all of them see", str(resumed))


def _dropout_seed(seed: int) -> int:
    """What dropout draws from: the first process as one alone would, the others each on its own."""
    rank = processes().rank
    return generator_for(seed, f"dropout of process {rank}").initial_seed() if rank else seed


@contextmanager
def _told_by_sentence(prepared: Prepared) -> Iterator[None]:
    """A loss that is not finite names the sentences of its batch."""
    try:
        yield
    except LossNotFinite as error:
        config = prepared.config
        train = limited(prepared.dataset.train, config.limit_train, config.seed)
        sentences = [train.sentences[i] for i in error.indices.tolist()]
        raise UserError(f"{error}; its sentences: {quoted(*sentences, length=60)}") from error


def evaluate_prepared(prepared: Prepared) -> Evaluation:
    """Measure the model on the validation sentences: the adapter on the base that its files will meet again.

    UserError if its logits are not finite.
    """
    model = prepared.model.eval()
    in_base = names_in_base(model)
    parameters = {in_base(name): p for name, p in model.named_parameters()}
    rounded = [name for name, parameter in parameters.items() if parameter.dtype == torch.bfloat16]
    for name, weight in prepared.base_weights(rounded) if rounded else ():
        parameters[name].data = weight.to(parameters[name].device)
    config, examples = prepared.config, prepared.validation_examples
    positive = positive_id(config.positive_class, prepared.dataset.label_names)
    return evaluate(model, examples, EVALUATION, config.plain, positive)
