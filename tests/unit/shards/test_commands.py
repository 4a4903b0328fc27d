"""Every command that makes or reads sets, on disks that take nothing, with files gone or cut, killed, and run twice.

Each ends whole or absent, in one sentence and with the code of what happened, and the same command then ends with the
bytes of a run that nothing disturbed.
"""

import io
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cluster.stop import EXIT_REFUSED, EXIT_UNSAVED
from pipeline.shards.alignment import photos
from pipeline.shards.alignment.detector import Face
from pipeline.shards.alignment.similarity import reference_points
from pipeline.shards.views.subset import subset
from stages import align, shard
from tests.full_disk import SmallDisk, small_disk
from tests.shards import made, plan_of, snapshot, write_people

DISK = "4m"
MEGABYTE = 1 << 20
TOO_MANY_REJECTED = 3
FAULTS_FOUND = 1


def files_of(name: str) -> dict[str, int]:
    """The files without which a set cannot be read, and the code that says so."""
    return dict.fromkeys(
        [f"in/{name}/manifest.json", f"in/{name}/index.npy", f"in/{name}/identities.txt", "in/set/faces-000001.tar"],
        EXIT_REFUSED,
    )


@dataclass(frozen=True)
class Command:
    """A command line, relative to a folder with `in/` and `out/`.

    Attributes:
        words: stage and arguments.
        gone, cut: file of the source to the code of a run without it, or with half of it.
        says_complete: whether a second run says that there is nothing to do.
        writes: whether it makes anything.
    """

    words: str
    gone: dict[str, int]
    cut: dict[str, int] = field(default_factory=dict)
    says_complete: bool = True
    writes: bool = True


OF_FACES = Command("", {"in/faces": EXIT_REFUSED}, {"in/faces/person 6/3.JPG": TOO_MANY_REJECTED})
OF_SET, OF_PART = files_of("set"), files_of("part")
FOUND = {name: EXIT_REFUSED if "manifest" in name else FAULTS_FOUND for name in files_of("set")}

COMMANDS = {
    "make": Command("shard make in/faces out/set --samples-per-tar 6", OF_FACES.gone, OF_FACES.cut),
    "make to a URL": Command(
        "shard make in/faces file://{root}/out/set --samples-per-tar 6",
        OF_FACES.gone,
        OF_FACES.cut,
        says_complete=False,
    ),
    "verify": Command("shard verify in/set --decode-every 1", FOUND, FOUND, says_complete=False, writes=False),
    "inspect": Command("shard inspect in/set out/set.html", OF_SET, OF_SET, says_complete=False),
    "subset": Command("shard subset in/set out/set --people 3", OF_SET, OF_SET),
    "merge": Command("shard merge in/part in/rest out/set --same-people", OF_PART, OF_PART),
    "clean": Command("shard clean in/set out/set", OF_SET, OF_SET),
    "copy": Command("shard copy in/part out/set --samples-per-tar 5", OF_PART, OF_PART),
    "copy to a URL": Command("shard copy in/part file://{root}/out/set", OF_PART, OF_PART, says_complete=False),
    "push": Command("shard push in/set file://{root}/out/set", OF_SET, OF_SET, says_complete=False),
    "pull": Command("shard pull file://{root}/in/set out/set", OF_SET, OF_SET),
    "align": Command("align in/photos out/crops", {"in/photos": EXIT_REFUSED}),
}


class Done(NamedTuple):
    """How a command ended; `renames` is how many files it gave their names."""

    code: int
    lines: list[str]  # on standard error
    renames: int


def find_a_face(image: NDArray[np.uint8]) -> list[Face]:
    """A face in the middle of any photograph; real ones are detected in tests of alignment."""
    del image
    return [Face(np.array([20.0, 20.0, 116.0, 132.0]), reference_points(112, 96) + 20)]


class Running:
    """A command in a process of its own, forked from this one: nothing is imported anew.

    Args:
        root: working directory.
        command: what to run.
        die_at: the rename before which it is killed.
    """

    def __init__(self, root: Path, command: Command, die_at: int = 0) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - until `wait`
        self._receive, send = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            code = 99
            try:
                code = self._run(root, command, die_at, send)
            finally:
                os._exit(code)
        os.close(send)

    def _run(self, root: Path, command: Command, die_at: int, send: int) -> int:
        os.chdir(root)
        os.dup2(self._errors.fileno(), 2)
        sys.stderr, sys.stdout = os.fdopen(2, "w", buffering=1), io.StringIO()  # a line is there although we `_exit`
        calls = count(1)
        for name in ("replace", "rename"):
            setattr(os, name, counted(getattr(os, name), calls, die_at, send))
        photos.detect = find_a_face  # type: ignore[attr-defined]
        stage, *words = command.words.format(root=root).split()
        sys.argv = [f"{stage}.py", *words, *(["--workers", "1"] if takes_workers(command) else [])]
        return {"align": align.main, "shard": shard.main}[stage]()

    def wait(self) -> Done:
        """How it ended, once it has; -9 for one that was killed."""
        with os.fdopen(self._receive, "rb") as pipe:
            renames = len(pipe.read())
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        with self._errors as errors:
            errors.seek(0)
            return Done(code, errors.read().decode().splitlines(), renames)


def takes_workers(command: Command) -> bool:
    return not command.words.startswith(("shard inspect", "shard subset", "shard merge", "shard pu"))


def counted(real: Callable[..., Any], calls: Iterator[int], die_at: int, send: int) -> Callable[..., Any]:
    """`os.replace` or `os.rename` with each call told through a pipe, and a kill before one of them."""

    def replace(source: Any, target: Any, **more: Any) -> Any:
        if next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(send, b".")
        return real(source, target, **more)

    return replace


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces, a set of them, two views that part it, and photographs."""
    root = tmp_path_factory.mktemp("sources")
    made(plan_of(write_people(root / "faces"), root / "set"))
    (root / "names").write_text("person 6\nperson 2\n")
    subset(root / "set", root / "part", drop=root / "names")
    subset(root / "set", root / "rest", keep=root / "names")
    (root / "photos" / "ann").mkdir(parents=True)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (150, 150, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / "ann" / f"{number}.jpg", quality=50)
    return root


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("disk") / "disk", DISK) as disk:
        yield disk


class Case:
    """A command and a folder to run it in, which is as it was at first."""

    def __init__(self, root: Path, sources: Path, command: Command) -> None:
        self.root, self.sources, self.command = root, sources, command
        self.anew()

    def anew(self) -> None:
        """As it was at first."""
        for there in self.root.iterdir():
            shutil.rmtree(there) if there.is_dir() else there.unlink()
        shutil.copytree(self.sources, self.root / "in")
        (self.root / "out").mkdir()

    def run(self, **options: int) -> Done:
        return Running(self.root, self.command, **options).wait()

    def made(self) -> dict[str, bytes]:
        """What it made; crops also say when they were begun, which no two runs do alike."""
        return snapshot(self.root / "out") | {
            name: b"" for name in ["crops/.aligned.json"] if (self.root / "out" / name).exists()
        }

    def is_whole(self) -> bool:
        """Whether what it makes looks complete."""
        names = ("set/manifest.json", "set.html", "crops/.aligned.json")
        return any((self.root / "out" / name).exists() for name in names)

    def must_end_well(self, whole: dict[str, bytes]) -> None:
        """Run it, and see that it ends with the bytes of a run that nothing disturbed."""
        done = self.run()
        assert (done.code, done.lines) == (0, [])
        assert self.made() == whole

    def must_be_refused(self, code: int) -> None:
        """Run it, and see that it says why in a line, and leaves nothing that looks whole."""
        done = self.run()
        assert done.code == code
        if code not in {0, FAULTS_FOUND}:
            (line,) = done.lines
            assert line.startswith(f"{self.command.words.split()[0]}: ")
            assert not self.is_whole()
        assert not list(self.root.glob("out/**/*.part"))


def in_a_folder_that_is_read_only(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    disk.remount("ro")
    try:
        case.must_be_refused(EXIT_UNSAVED if case.command.writes else 0)
        assert snapshot(case.root / "out") == {}
    finally:
        disk.remount("rw")
    case.must_end_well(whole)
    disk.remount("ro")
    try:  # a second run of what is complete has nothing to write
        assert case.run().code == (EXIT_UNSAVED if "inspect" in case.command.words else 0)
    finally:
        disk.remount("rw")
    assert case.made() == whole


def on_a_full_disk(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    for left in (0, 10_000, 30_000):
        disk.fill(left)
        done = case.run()
        if not done.code:
            assert case.made() == whole
            break
        (line,) = done.lines
        assert (done.code, line.rpartition(": ")[2]) == (EXIT_UNSAVED, "No space left on device")
        assert not case.is_whole()
        assert not list(case.root.glob("out/**/*.part"))
    disk.free()
    if case.is_whole():
        assert case.made() == whole
    else:
        case.must_end_well(whole)


def with_a_file_gone(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    del disk
    for name, code in case.command.gone.items():
        case.anew()
        (case.root / name).rename(case.root / "aside")
        case.must_be_refused(code)
        (case.root / "aside").rename(case.root / name)
    case.must_end_well(whole)


def with_a_file_cut(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    del disk
    for name, code in case.command.cut.items():
        case.anew()
        content = (case.root / name).read_bytes()
        (case.root / name).write_bytes(content[: len(content) // 2])
        case.must_be_refused(code)
        (case.root / name).write_bytes(content)
    case.must_end_well(whole)


def killed(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    del disk
    renames = case.run().renames
    assert bool(renames) == case.command.writes
    for die_at in sorted({1, renames // 2, renames} & {*range(1, renames + 1)}):
        case.anew()
        assert case.run(die_at=die_at).code == -signal.SIGKILL
        case.must_end_well(whole)


def run_twice(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    del disk
    case.must_end_well(whole)
    before = {path: path.stat().st_mtime_ns for path in case.root.glob("out/**/*") if path.suffix != ".html"}
    done = case.run()
    assert done.code == 0
    assert [line.rpartition(": ")[2] for line in done.lines] == (
        ["already complete, nothing done"] if case.command.says_complete else []
    )
    assert case.made() == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before


def run_twice_at_once(case: Case, whole: dict[str, bytes], disk: SmallDisk) -> None:
    del disk
    for delay in (0.0, 0.01):
        case.anew()
        both = [Running(case.root, case.command)]
        time.sleep(delay)
        both.append(Running(case.root, case.command))
        for one in both:
            done = one.wait()
            assert (done.code, [line for line in done.lines if "already complete" not in line]) == (0, [])
        assert case.made() == whole


TROUBLES = [
    in_a_folder_that_is_read_only,
    on_a_full_disk,
    with_a_file_gone,
    with_a_file_cut,
    killed,
    run_twice,
    run_twice_at_once,
]


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_in_trouble(
    name: str, trouble: Callable[..., None], sources: Path, disk: SmallDisk, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    undisturbed = Case(tmp_path, sources, command)
    assert undisturbed.run().code == 0
    whole = undisturbed.made()
    assert bool(whole) == command.writes
    trouble(Case(disk.path, sources, command), whole, disk)
