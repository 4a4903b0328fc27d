"""The device of the tests of this folder: the GPU, or the CPU to try them where there is none (`--device cpu`)."""

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    device = torch.device(request.config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU that torch can use")
    return device


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """The GPU, of what a CPU has no counterpart for."""
    if device.type != "cuda":
        pytest.skip("about the GPU itself")
    return device
