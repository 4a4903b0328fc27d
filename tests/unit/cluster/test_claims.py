"""A folder has one holder at a time, as long as it or a subprocess with its lock lives; what is left is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from cluster.claims import claimed, marked, sweep

HOLDER = """
import sys
from pathlib import Path
from cluster.claims import claimed
with claimed(Path(sys.argv[1])) as lock:
    print("held" if lock is not None else "taken", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_folder_is_held_by_one_process_and_free_when_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "if need be"
    with holder(folder) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with claimed(folder) as lock:
            assert lock is None
        first.kill()
        first.wait()
    with claimed(folder) as lock:
        assert lock is not None


def test_a_subprocess_that_has_the_lock_holds_the_folder_on(tmp_path: Path) -> None:
    with claimed(tmp_path) as lock:
        assert lock is not None
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with child:
        with claimed(tmp_path) as again:
            assert again is None
        child.communicate(b"\n")
    with claimed(tmp_path) as lock:
        assert lock is not None


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
