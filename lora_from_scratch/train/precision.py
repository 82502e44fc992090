"""In what precision a model computes: fp32, bf16, or fp16 with its GradScaler."""

import warnings

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(name: str, device: torch.device) -> str:
    """ "auto" is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU."""
    if name == "fp16" and device.type == "cpu":
        warnings.warn(
            "--precision fp16 is slow on a CPU; leave it out for a faster one, or take fp32", stacklevel=2
        )
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if any(capabilities.get(key) for key in ("avx512_bf16", "amx_bf16", "bf16")) else "fp32"


def make_scaler(precision: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss up under fp16, whose exponent is too short for small gradients; else does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
