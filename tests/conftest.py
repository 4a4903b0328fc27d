"""Settings of every test."""

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

# Several test processes share the machine's cores: one thread each keeps them from fighting,
# and keeps sums in one order so that bitwise comparisons mean something.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored; processes that tests start would inherit that, and never stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=["cuda", "cpu"], default="cuda", help="where tests/gpu run; cpu: to try them without a GPU"
    )


@pytest.hookimpl(optionalhook=True)  # without xdist there is no such hook
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:  # noqa: ARG001
    """One more than there are cores: on two, two workers leave them idle for a sixth of the time, while tests wait."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, Any]:  # noqa: ARG001
    """In CI, which installs every system package, a skip hides a hole: only the GPU may be missing."""
    report = yield
    if report.skipped and os.environ.get("CI") and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, which has everything but a GPU: {report.longrepr}"
    return report
