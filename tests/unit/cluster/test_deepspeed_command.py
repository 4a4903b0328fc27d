"""What a rank finds out about the `deepspeed` command that started it, from processes that look like its launcher."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

RANK = """
import sys
from cluster.deepspeed_command import hosts_by_rank, watch
gone = watch()
print(*hosts_by_rank(), gone(), flush=True)
sys.stdin.readline()
print(gone(), flush=True)
"""

# starts a rank, as the launcher does, and waits for it
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"

# starts the launcher with the rest of its arguments, prints its own number, and waits
COMMAND = """
import os, subprocess, sys
print(os.getpid(), flush=True)
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


def test_the_hosts_of_uneven_ranks_and_the_end_of_the_command_are_found() -> None:
    info = base64.urlsafe_b64encode(json.dumps({"alpha": [0, 1], "beta": [0]}).encode()).decode()
    launcher = [LAUNCHER, RANK, "deepspeed.launcher.launch", f"--world_info={info}"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *launcher], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdin and command.stdout
        assert int(command.stdout.readline()) == command.pid
        assert command.stdout.readline() == "alpha alpha beta False\n"
        command.kill()
        command.wait()
        command.stdin.write("\n")
        command.stdin.flush()
        assert command.stdout.readline() == "True\n"


def test_a_process_that_no_launcher_started_has_no_command() -> None:
    done = subprocess.run([sys.executable, "-c", RANK], input="\n", stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False\nFalse\n"
