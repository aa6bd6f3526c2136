"""Which side of an operation runs: the kernels for CUDA tensors, plain PyTorch for CPU tensors.

With TRITON_INTERPRET=1 in the environment, set before Triton is imported, CPU tensors take the kernels too, slowly and
correctly: that is how they are tested where no GPU is.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch


def runs_kernels(device: torch.device) -> bool:
    """Whether tensors on this device go to Triton.

    Raises:
        ValueError: for a device of another kind.
    """
    if device.type == "cuda":
        return True
    if device.type != "cpu":
        raise ValueError(f"tensors are on {device}: only cpu and cuda are known")
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
