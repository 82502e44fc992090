"""LoRA as a method: where its layers go, and with which settings. The idea itself is `core/lora.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_from_scratch.errors import UserError
from lora_from_scratch.methods.interface import Method, at_least_one, flag, positive
from lora_from_scratch.methods.targets import parted, spelled

if TYPE_CHECKING:
    from torch import Generator, nn


ALL_LINEAR = "all-linear"  # PEFT's word


@dataclass(frozen=True, kw_only=True)
class LoRASettings:
    """What LoRA can be asked; see `LoRALinear` and `inject_lora`."""

    rank: int = flag(4, "rank of the update", "R")
    alpha: float = flag(16.0, "the update is scaled by alpha / rank, in rslora by alpha / sqrt(rank)")
    dropout: float = flag(0.05, "dropout before A; of pissa 0, unless it is named", "P")
    target_modules: tuple[str, ...] = flag(
        ("attn.c_attn",),
        "suffixes of the layers to adapt, such as attn.c_attn mlp.c_proj, or all-linear; of attn.c_attn also "
        "parts: attn.c_attn:q,v",
        "NAME",
    )

    def __post_init__(self) -> None:
        at_least_one(rank=self.rank)
        positive(alpha=self.alpha)
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must lie in [0, 1), not {self.dropout:g}")
        object.__setattr__(self, "target_modules", spelled(self.target_modules))


def linear_layers(model: nn.Module) -> list[str]:
    """The linear layers of all blocks: c_attn and c_proj of attention, c_fc and c_proj of the MLP."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, (nn.Linear, Conv1D)) and name != "score"]


class LoRA(Method):
    """LoRA around the target layers, and the head (which starts random, so it has to learn).

    GPT-2 fuses Wq, Wk and Wv into c_attn: one rank-r update there shares A among the three. The paper gives
    Wq and Wv an A each; so does the target attn.c_attn:q,v, by `PartedLoRALinear`.
    """

    name = "lora"
    summary = "LoRA beside frozen layers, and the head"
    saved_as = "A LoRA adapter"
    # Chosen on the bundled base, on held-out sentences (docs/commands.md); for bases as wide as GPT-2 the
    # same, which the published table's author used in an earlier notebook; the table has 2e-4.
    rates = (5e-4, 5e-4)
    format = "peft"
    Settings = LoRASettings

    def adapt(
        self, model: nn.Module, settings: LoRASettings, generator: Generator | None = None
    ) -> nn.Module:
        """r (in + out) parameters for each target layer, or part of one, learn, and the head."""
        from lora_from_scratch.core.surgery import inject_lora, is_suffix, lora_layers, place
        from lora_from_scratch.methods.parted_lora import PartedLoRALinear

        targets = dict(map(parted, settings.target_modules))  # parts by suffix
        if ALL_LINEAR in targets:
            if len(targets) > 1:
                raise UserError(f"--target-modules {ALL_LINEAR} names every layer: leave the others out")
            targets = dict.fromkeys(linear_layers(model), ())
        if "score" in targets:
            raise UserError("target score is the classifier head, which LoRA trains whole: leave it out")
        update = (settings.rank, settings.alpha, settings.dropout)
        inject_lora(model, list(targets), *update, generator, modules_to_save=["score"])
        for name, layer in list(lora_layers(model)):
            if parts := next(parts for suffix, parts in targets.items() if is_suffix(suffix, name)):
                place(model, name, PartedLoRALinear(layer.base_layer, parts, *update, generator))
        return model

    def describe(self, settings: LoRASettings) -> str:
        update = f"rank {settings.rank}, alpha {settings.alpha:g}, dropout {settings.dropout:g}"
        return f"LoRA around {', '.join(settings.target_modules)}: {update}{_stacked(settings)}"


def _stacked(settings: LoRASettings) -> str:
    """Where parts are named: whose rank it is, and the one in PEFT's files, of all parts together."""
    counts = {target: len(parted(target)[1]) for target in settings.target_modules}
    ranks = [f"{target} stacked to rank {n * settings.rank}" for target, n in counts.items() if n > 1]
    told = f"PEFT's files hold {', '.join(ranks)}, and an alpha that keeps the scaling"
    return f" (of each part by itself; {told})" if ranks else ""
