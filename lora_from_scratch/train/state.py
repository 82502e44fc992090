"""All that a training is between two steps, and the same as named tensors and plain facts.

Nothing here depends on how `fast/` has placed the model: what learns goes by its name in the model, frozen
weights are not part of it, and an embedding that was cut to some rows says which.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lora_from_scratch.core.loop import TrainState
from lora_from_scratch.errors import UserError
from lora_from_scratch.train.log import StepLog
from lora_from_scratch.train.measure import PeakMemory, PhaseClock
from lora_from_scratch.train.processes import processes, whole

WEIGHTS, ROWS, GENERATOR = "weights.", "rows.", "generator."
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's names
OF_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")  # the other entries are how it was made


@dataclass
class Snapshot:
    """A training between two steps: tensors by name, and what JSON holds."""

    tensors: dict[str, Tensor]
    facts: dict[str, object]

    @property
    def steps(self) -> int:
        return len(self.tensors["log.losses"])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without that beginning."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}


@dataclass
class TrainingState:
    """What a training steps, notes and measures. Its order of sentences is a function of the seed alone, so
    the place in it is the number of steps that the log holds."""

    loop: TrainState
    log: StepLog
    clock: PhaseClock
    memory: PeakMemory
    rows: Mapping[str, Tensor] = field(default_factory=dict)  # of embeddings that were cut, by name
    checkpoint_seconds: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether all that learns still consists of numbers; of several processes all have to ask, as each
        may hold another share."""
        wrong = not all(bool(parameter.isfinite().all()) for _, parameter in self._learning())
        return not processes().largest(int(wrong))[0]

    def snapshot(self) -> Snapshot:
        """Where the training stands; of several processes all have to ask, and get the same.

        The tensors are the training's own: write them before the next step.
        """
        tensors = {f"{ROWS}{name}": rows for name, rows in self.rows.items()}
        for name, parameter in self._learning():
            tensors[f"{WEIGHTS}{name}"] = whole(parameter.detach())
            moments = self.loop.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": whole(moments[moment]) for moment in MOMENTS}
        for name, (get, _) in self._generators().items():
            states = enumerate(processes().gathered(get()))
            tensors |= {f"{GENERATOR}{name}.{rank}": state for rank, state in states}
        tensors |= {f"log.{name}": column for name, column in self.log.tensors().items()}
        schedule = self.loop.schedule.state_dict()
        return Snapshot(
            tensors,
            {
                "decays": [float(whole(decay)) for decay in self.loop.decays],
                "schedule": {name: schedule[name] for name in OF_SCHEDULE},
                "scaler": self.loop.scaler.state_dict(),
                "validated": self.log.validated,
                "clock": {"seconds": self.clock.seconds, "phases": self.clock.phases},
                "checkpoint_seconds": self.checkpoint_seconds,
                "peak_bytes": self.memory.peak,
            },
        )

    @torch.no_grad()
    def restore(self, found: Snapshot) -> None:
        """Stand where the snapshot was taken. UserError if it is one of another training."""
        facts, loop = found.facts, self.loop
        learning = dict(self._learning())
        _check_names(found.under(WEIGHTS), learning)
        for name, rows in self.rows.items():
            if not torch.equal(found.tensors.get(f"{ROWS}{name}", rows[:0]), rows):
                raise UserError(f"its rows of {name} are not those of these sentences")
        for name, parameter in learning.items():
            parameter.copy_(_placed_as(parameter, found.tensors[f"{WEIGHTS}{name}"]))
            moments = {moment: found.tensors[f"{moment}.{name}"] for moment in MOMENTS}
            loop.optimizer.state[parameter] = {n: _placed_as(parameter, t) for n, t in moments.items()}
        loop.decays = facts["decays"]
        loop.schedule.load_state_dict({**loop.schedule.state_dict(), **facts["schedule"]})
        for group, rate in zip(loop.optimizer.param_groups, loop.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        loop.scaler.load_state_dict(facts["scaler"])
        self.log.restore(found.under("log."), [(step, values) for step, values in facts["validated"]])
        self.clock.seconds, self.clock.phases = facts["clock"]["seconds"], dict(facts["clock"]["phases"])
        self.checkpoint_seconds, self.memory.peak = facts["checkpoint_seconds"], facts["peak_bytes"]
        for name, (_, put) in self._generators().items():  # last: nothing that draws comes behind it
            state = found.tensors.get(f"{GENERATOR}{name}.{processes().rank}")
            if state is not None:  # else there were fewer processes, and this one begins as it does at first
                put(state.clone())

    def _learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.loop.model.named_parameters() if p.requires_grad)

    def _generators(self) -> dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], None]]]:
        """What dropout draws from: how each generator's state is had, and put back."""
        found = {"cpu": (torch.get_rng_state, torch.set_rng_state)}
        device = self.clock.device
        if device.type == "cuda":
            cuda = torch.cuda
            found["cuda"] = (lambda: cuda.get_rng_state(device), lambda s: cuda.set_rng_state(s, device))
        return found


def _placed_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a tensor where the parameter is, shared out over the processes if that is."""
    copy = tensor.to(parameter.device, copy=True)
    if copy.ndim and hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(copy, parameter.device_mesh, parameter.placements)
    return copy


def _check_names(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    """UserError unless the same tensors learn there and here, in the same shapes."""
    for name in sorted(there.keys() ^ here.keys()):
        raise UserError(f"{name} learns {'there' if name in there else 'here'} alone")
    for name, tensor in here.items():
        if there[name].shape != tensor.shape:
            raise UserError(f"{name} is {tuple(there[name].shape)}, here {tuple(tensor.shape)}")
