"""A real Slurm on one machine: a controller and a daemon for each of two nodes, all in one folder. Needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.ports import free_port

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PATIENCE_SECONDS = 300  # of a busy machine; a test that passes waits for a fraction of it

# A node's name is its address, so that ranks find each other without a name server. Its GPU is /dev/null. A job that
# was queued again starts after cred_expire seconds (default: two minutes). Jobs of `high` preempt `low`. The batch file
# makes a port of the job's number: another first number in each Slurm, so that two can run side by side.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
KillWait=120
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
"""

PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client)" if missing else None


class Slurm:
    """Two nodes of one GPU each; gone at the end of the context, with every job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._conf = folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.nodes = ("127.0.0.1", "127.0.0.2")

    def __enter__(self) -> Slurm:
        for name in ("state", "spool"):
            (self._folder / name).mkdir(parents=True)
        host = socket.gethostname()
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={free_port()} CPUs=2 Gres=gpu:1\n"
            for node in self.nodes
        ]
        first_job = os.getpid() % 10_000 + 1
        configuration = CONFIGURATION.format(host=host, port=free_port(), folder=self._folder, first_job=first_job)
        self._conf.write_text(configuration + "".join(lines) + PARTITIONS)
        (self._folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu File=/dev/null\n" for node in self.nodes)
        )
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("scancel", "--user", "root", "--state", "PENDING")
        self.ask("scancel", "--user", "root", "--signal", "KILL", "--full")
        until = time.monotonic() + 10
        while self.ask("squeue", "--noheader").strip() and time.monotonic() < until:
            time.sleep(0.1)
        for daemon in self._daemons:
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait()

    def _boot(self) -> None:
        for command in (["slurmctld"], *(["slurmd", "-N", node] for node in self.nodes)):
            with (self._folder / f"{command[0]}{command[-1]}.out").open("wb") as output:
                self._daemons.append(
                    subprocess.Popen([*command, "-D", "-f", self._conf], stdout=output, stderr=subprocess.STDOUT)
                )
        self.wait_for(lambda: self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() == ["idle", "idle"])

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self._conf)}

    def ask(self, *command: str) -> str:
        """The output of one of Slurm's commands, whether or not it succeeds."""
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def submit(self, *arguments: str | Path, cwd: Path, **environment: str) -> str:
        """`sbatch`, from this folder; the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            cwd=cwd,
            env=self._environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job`: JobState, Restarts, ExitCode and so on."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, condition: Callable[[], object], output: Callable[[], str] = str) -> None:
        """Wait until `condition` holds; fails after `PATIENCE_SECONDS`, showing `output` and Slurm's state."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{output()}\n{self.ask('squeue')}\n{self.ask('sinfo', '-N', '-l')}"
            time.sleep(0.1)
