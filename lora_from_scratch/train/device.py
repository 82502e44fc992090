"""The device that computes, and the hardware and versions that a figure is read with."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
import transformers

from lora_from_scratch.errors import UserError, first_line
from lora_from_scratch.train.processes import started
from lora_from_scratch.version import __version__


def resolve_device(name: str) -> torch.device:
    """ "auto" is the GPU if there is one; of several that torchrun's processes share, each has its own.

    Raises UserError where PyTorch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()  # the meta device has none
        return tensor.device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = first_line(error)[:70]
        raise UserError(
            f"--device {name}: PyTorch cannot use it here ({reason}); try auto, cpu or cuda"
        ) from error


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within the block, where asked, PyTorch takes the kernels that give the same bits each time."""
    before = torch.are_deterministic_algorithms_enabled()
    if asked:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first called
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def environment(device: torch.device) -> dict[str, object]:
    """Hardware and versions, so that a figure can be read years later."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "processes": started(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lora_from_scratch": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
    }
