"""Which algorithms the libraries may choose on a GPU, repeatable ones or the fastest; and what a device computes in."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def keep_compiled() -> None:
    """Let torch.compile keep what it has compiled in the user's cache, where the next start finds it.

    Its own default is a folder of /tmp. ``TORCHINDUCTOR_CACHE_DIR`` names another.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))


def choose_algorithms(repeatable: bool, compiles: bool) -> None:
    """Ask torch, cuDNN and cuBLAS for kernels that repeat bit for bit, or for the fastest. Of this process.

    Before the first matrix product on a GPU: cuBLAS reads its workspace once. Without a GPU all kernels repeat.

    Args:
        repeatable: whether they repeat.
        compiles: whether torch.compile will be used. It then hears of the choice; else it is not even imported.
    """
    if repeatable:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if compiles:
        torch.use_deterministic_algorithms(repeatable, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if repeatable else "default")
        _leave_compiler_out()
    # By default torch then also fills what it allocates, every output of a batch norm for one, with NaN: a pass over
    # memory for nothing, since what is computed here reads no number that was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    # Trial runs of a convolution's algorithms: the winner may be another one after a restart.
    torch.backends.cudnn.benchmark = not repeatable


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself; else products are emulated, and slower than those in float32.

    A CPU whose torch does not say (before `torch.cpu.get_capabilities`) is taken to.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is None or any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _leave_compiler_out() -> None:
    """Keep torch's optimizers from importing its compiler, which takes seconds of every rank's start.

    Some of their methods do so at their first call, to ask for a version of the method that is never compiled, and keep
    that beside the method: here it is the method itself. A torch that keeps it elsewhere imports as ever.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            vars(plain).setdefault("__dynamo_disable", plain)
