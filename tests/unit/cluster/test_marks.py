"""What works in a folder is found by its mark and ended, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from cluster.marks import marked, sweep


def test_a_sweep_ends_what_works_in_the_folder_and_nothing_else(tmp_path: Path) -> None:
    # it ignores what can be ignored, and has a child of its own
    script = "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)\n"
    script += f"subprocess.run([{sys.executable!r}, '-c', 'input()'])"
    mine, others = tmp_path / "mine", tmp_path / "mine too"
    started = [
        subprocess.Popen([sys.executable, "-c", script], env=marked(folder), stdin=subprocess.PIPE, stdout=-1)
        for folder in (mine, others)
    ]
    for process in started:
        assert process.stdout
        process.stdout.readline()
    assert sweep(mine) >= 1
    assert started[0].wait() == -signal.SIGKILL
    assert started[1].poll() is None
    assert sweep(others) >= 1
    for process in started:
        process.communicate()
    assert sweep(tmp_path) == 0
