"""LoRA-FA: LoRA whose A stays as it was drawn, so that no layer's input is kept for the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_from_scratch.methods.lora import LoRA, LoRASettings

if TYPE_CHECKING:
    from torch import Generator, nn


class LoRAFA(LoRA):
    """h = W0 x + s B A x around the target layers, where B alone learns, and the head.

    Source: Zhang et al. 2023, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models
    Fine-tuning", arXiv:2308.03303. The gradient of A takes x, `(..., in)`; that of B takes A x, `(..., r)`,
    and of the two autograd keeps that alone. On GPT-2 small with r = 4, 12 * 4 * 2304 = 110,592 parameters
    learn.
    """

    name = "lora-fa"
    summary = "LoRA with A frozen as it was drawn, and the head"
    saved_as = "A LoRA adapter (LoRA-FA: its A was frozen)"
    rates = LoRA.rates  # not tuned for it
    by_default = False

    def adapt(
        self, model: nn.Module, settings: LoRASettings, generator: Generator | None = None
    ) -> nn.Module:
        """r out parameters for each target layer learn, and the head."""
        return freeze_A(super().adapt(model, settings, generator))

    def describe(self, settings: LoRASettings) -> str:
        return f"{super().describe(settings)}; A frozen as it was drawn (LoRA-FA)"


def freeze_A(model: nn.Module) -> nn.Module:
    """Let no A of the model's LoRA layers learn."""
    for name, parameter in model.named_parameters():
        if name.endswith(".lora_A"):
            parameter.requires_grad_(False)
    return model
