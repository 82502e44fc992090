"""AdamW over what learns, and its learning rate over the steps."""

import torch
from transformers import get_scheduler


def make_optimizer(groups: list[dict[str, object]], lr: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019), as one fused kernel where PyTorch has it.

    A group's rate is lr, times its `lr_ratio` where it has one.
    """
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")

    def rated(lr_ratio: float = 1.0, **group: object) -> dict[str, object]:
        return {**group, "lr": lr_ratio * lr}

    return torch.optim.AdamW([rated(**group) for group in groups], lr=lr, fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """From the optimizer's rate in a straight line to 0 after `steps` steps; no warm-up."""
    return get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=steps)
