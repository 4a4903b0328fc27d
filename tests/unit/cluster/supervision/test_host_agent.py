"""An agent forks ranks of what it has imported, reports how each ended, and leaves none behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.marks import AGENT_VARIABLE
from cluster.supervision.connection import Connection
from tests.faces import ROOT

PATIENCE_SECONDS = 120

# Its argument is a folder. It writes there what it is and whether the agent had imported `slow`, and what it is sent.
RANK = """
import os, signal, sys, time
from pathlib import Path
place = Path(sys.argv[1], os.environ["RANK"])
def note(number, frame):
    place.with_suffix(".heard").write_text(signal.Signals(number).name)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
place.with_suffix(".writing").write_text(f"{os.getpid()} {'slow' in sys.modules} {__name__}")
place.with_suffix(".writing").rename(place.with_suffix(".up"))
while not place.with_suffix(".end").exists():
    time.sleep(0.02)
sys.exit(int(place.with_suffix(".end").read_text()))
"""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Whether a process runs: one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Scene:
    """An agent with the rooms of a copy of the project, and the ranks that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.code = folder, folder / "code"
        shutil.copytree(ROOT / "cluster", self.code / "cluster")
        (self.code / "slow.py").touch()
        (folder / "rank.py").write_text(RANK)
        self.agent = self.connect()

    def connect(self) -> Connection:
        # there, since -m looks first where it is
        agent = [sys.executable, "-m", "cluster.supervision.host_agent", "--import", "slow,absent"]
        command = ["env", "-C", str(self.code), *agent]
        command += [str(self.folder / "rank.py"), str(self.folder)]
        mark = {AGENT_VARIABLE: str(self.folder), "PYTHONPATH": str(self.code)}
        made = Connection(command, os.environ | mark, prefix=None)
        until(lambda: made.is_there)
        return made

    def start(self, count: int) -> list[int]:
        """Start ranks and wait until they are up; their process ids."""
        for path in self.folder.glob("*.up"):
            path.unlink()
        self.agent.start([{"RANK": str(number)} for number in range(count)])
        until(lambda: len(list(self.folder.glob("*.up"))) == count)
        return [int(self.said(number)[0]) for number in range(count)]

    def said(self, number: int) -> list[str]:
        return (self.folder / f"{number}.up").read_text().split()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.agent.signal("SIGKILL")
    made.agent.close(PATIENCE_SECONDS)


def test_ranks_share_the_imports_and_end_each_with_its_code(scene: Scene) -> None:
    ranks = scene.start(3)
    assert [scene.said(number)[1:] for number in range(3)] == [["True", "__main__"]] * 3
    assert [os.getsid(rank) for rank in ranks] == ranks
    assert [Path(f"/proc/{rank}/comm").read_text() for rank in ranks] == ["rank 0\n", "rank 1\n", "rank 2\n"]
    (scene.folder / "0.end").write_text("69")
    until(lambda: scene.agent.codes == {0: 69})
    os.kill(ranks[1], signal.SIGKILL)
    scene.agent.signal("SIGUSR1")
    until(lambda: scene.agent.codes == {0: 69, 1: -signal.SIGKILL, 2: 75})
    (scene.folder / "0.end").write_text("0")
    scene.start(1)
    until(lambda: scene.agent.codes == {0: 0})


def test_a_frozen_rank_is_killed(scene: Scene) -> None:
    (rank,) = scene.start(1)
    os.kill(rank, signal.SIGSTOP)
    scene.agent.signal("SIGKILL")
    until(lambda: scene.agent.codes == {0: -signal.SIGKILL})


def test_after_a_change_of_the_code_ranks_import_anew(scene: Scene) -> None:
    (scene.code / "cluster" / "new.py").write_text("# of today")
    scene.start(2)
    assert [scene.said(number)[1:] for number in range(2)] == [["False", "__main__"]] * 2


def test_ranks_are_asked_to_stop_when_the_supervisor_is_gone(scene: Scene) -> None:
    ranks = scene.start(2)
    scene.agent.close(PATIENCE_SECONDS)
    assert [(scene.folder / f"{number}.heard").read_text() for number in range(2)] == ["SIGTERM"] * 2
    assert not any(map(lives, ranks))


def test_ranks_are_asked_to_stop_when_the_agent_is_killed(scene: Scene) -> None:
    (rank,) = scene.start(1)
    os.kill(int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    until(lambda: scene.agent.is_lost and (scene.folder / "0.heard").exists())
    assert (scene.folder / "0.heard").read_text() == "SIGTERM"


def test_an_agent_without_ranks_that_hears_nothing_ends(scene: Scene) -> None:
    scene.agent.close(PATIENCE_SECONDS)
    file = scene.code / "cluster" / "supervision" / "host_agent.py"
    file.write_text(file.read_text().replace("_SILENT_SECONDS = 60.0", "_SILENT_SECONDS = 1.2"))
    scene.agent = scene.connect()
    scene.start(1)
    time.sleep(1.4)
    assert scene.agent.is_there, "it has a rank"
    (scene.folder / "0.end").write_text("0")
    until(lambda: scene.agent.is_lost)
    assert scene.agent.codes == {0: 0}


def test_an_agent_ends_what_an_earlier_one_of_the_same_supervisor_has_left(scene: Scene) -> None:
    ranks = scene.start(2)
    earlier, scene.agent = scene.agent, scene.connect()
    until(lambda: earlier.is_lost)
    earlier.close()
    assert not any(map(lives, ranks))
    assert len(scene.start(2)) == 2
