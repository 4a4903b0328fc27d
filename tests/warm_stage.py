"""A stage in a process of its own that need not import torch: it is forked from one that has, a matter of seconds.

Everything else is as if a shell had started it: options, folder, environment, output, exit code. That a stage starts
from nothing is for other tests to show, which start it as a new process.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.distributed.ranks import CONTEXT, TIMEOUT_SECONDS


def run_warm(
    script: str | Path, *arguments: str | Path, folder: str | Path = ".", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python script arguments` in `folder`, to its end; its exit code is the caller's to judge."""
    words = [str(word) for word in (script, *arguments)]
    variables = dict(os.environ if environment is None else environment)
    if torch.cuda.is_available():  # a process that is forked from one that has touched CUDA cannot use it
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory() as place:
        process = CONTEXT.Process(target=_main, args=(words, str(Path(folder).resolve()), variables, place))
        process.start()
        process.join(TIMEOUT_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (file.read_text() if file.exists() else "" for file in (Path(place, "1"), Path(place, "2")))
    return subprocess.CompletedProcess(words, process.exitcode or 0, out, err)


def _main(words: list[str], folder: str, variables: dict[str, str], place: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for stream in (1, 2):
        os.dup2(os.open(f"{place}/{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")  # what it raises becomes the exit code, as it would there


CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code, out, err = json.load(server.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def warm_python(command: Path) -> Iterator[None]:
    """`command`, while the context lasts: a file that runs ``python script arguments`` by `run_warm`, for shells."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address = f"{folder}/socket"
        server.bind(address)
        server.listen()
        command.write_text(f"#!{sys.executable} -IS\n{CLIENT.format(address=address)}")
        command.chmod(0o755)
        thread = threading.Thread(target=_serve, args=(server,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)  # which ends the thread's wait
            thread.join()


def _serve(server: socket.socket) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        with client, client.makefile("rw") as stream:
            words, folder, environment = json.load(stream)
            done = run_warm(*words, folder=folder, environment=environment)
            json.dump([done.returncode, done.stdout, done.stderr], stream)
