"""Real hosts on one machine: network namespaces on a bridge, each with its own name and an sshd. Needs root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE_SECONDS = 300  # of a busy machine; a test that passes waits for a fraction of it
NEEDED = ("ip", "unshare", "pdsh", "ssh", "ssh-keygen")


def why_not() -> str | None:
    """Why there can be no such hosts here; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or not Path("/usr/sbin/sshd").exists():
        return f"not installed: {', '.join(missing) or 'sshd'} (Debian: iproute2 pdsh openssh-server)"
    made = subprocess.run(["ip", "netns", "add", f"probe{os.getpid()}"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    run("ip", "netns", "delete", f"probe{os.getpid()}")
    return None


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Hosts:
    """`count` hosts, reachable by ssh from this one and from each other; removed at the end of the context."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._tag = f"s{os.getpid() % 100000}"
        self._net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.addresses = [f"{self._net}.{number + 1}" for number in range(count)]
        self.names = [f"host{number + 1}" for number in range(count)]
        self._sshd: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Hosts:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self.names)):
            self.kill(number)
            for what in (["link", "delete", f"{self._tag}v{number}"], ["netns", "delete", self.space(number)]):
                subprocess.run(["ip", *what], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", f"{self._tag}br"], capture_output=True, check=False)

    @property
    def ssh_arguments(self) -> str:
        """For PDSH_SSH_ARGS_APPEND: this test's key, and no questions."""
        return f"-F /dev/null -i {self._folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -q"

    def hostfile(self) -> Path:
        """One slot a host."""
        path = self._folder / "hostfile"
        path.write_text("".join(f"{address} slots=1\n" for address in self.addresses))
        return path

    def pids(self, number: int) -> list[int]:
        """Processes of a host."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.space(number)).split()]

    def kill(self, number: int) -> None:
        """Cut the host's power: every process ends at once, and its network is gone."""
        self.unplug(number)
        for pid in self.pids(number) if Path(f"/run/netns/{self.space(number)}").exists() else []:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        if number in self._sshd:
            self._sshd.pop(number).wait()

    def unplug(self, number: int) -> None:
        """Pull the host's network cable: no connection is closed, nothing arrives."""
        subprocess.run(["ip", "link", "set", f"{self._tag}v{number}", "down"], capture_output=True, check=False)

    def plug(self, number: int) -> None:
        """Plug the cable in again."""
        run("ip", "link", "set", f"{self._tag}v{number}", "up")

    @contextmanager
    def laid_over(self, number: int, others: dict[Path, Path]) -> Iterator[None]:
        """Within the context, each of these paths shows on this host alone what is at the other path."""
        for path, other in others.items():
            self.on(number, "mount", "--bind", other, path)
        try:
            yield
        finally:
            for path in others:
                self.on(number, "umount", path)

    def on(self, number: int, *command: str | Path) -> str:
        """The output of a command on that host."""
        return run("ssh", *self.ssh_arguments.split(), self.addresses[number], shlex.join(map(str, command)))

    def boot(self, number: int) -> None:
        """(Re)start a host: network and sshd."""
        self.plug(number)
        script = f"hostname {self.names[number]} && exec /usr/sbin/sshd -D -e -f {self._folder}/sshd_config"
        # a host sees its own processes only, and has its own name and mounts
        own = ["unshare", "--uts", "--mount-proc", "--pid", "--fork", "--kill-child"]
        inside = ["ip", "netns", "exec", self.space(number), *own, "sh", "-c", script]
        self._sshd[number] = subprocess.Popen(
            inside, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        command = ["ssh", *self.ssh_arguments.split(), "-o", "ConnectTimeout=2", self.addresses[number], "true"]
        while subprocess.run(command, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"no ssh to {self.addresses[number]}"
            time.sleep(0.1)

    def space(self, number: int) -> str:
        """The host's network namespace."""
        return f"{self._tag}h{number}"

    def _build(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / key)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's directory for its unprivileged process
        (self._folder / "sshd_config").write_text(
            f"HostKey {self._folder}/host_key\nAuthorizedKeysFile {self._folder}/key.pub\nStrictModes no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile none\n"
        )
        run("ip", "link", "add", f"{self._tag}br", "type", "bridge")
        run("ip", "address", "add", f"{self._net}.254/24", "dev", f"{self._tag}br")
        run("ip", "link", "set", f"{self._tag}br", "up")
        for number, address in enumerate(self.addresses):
            space = self.space(number)
            run("ip", "netns", "add", space)
            run("ip", "link", "add", f"{self._tag}v{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            run("ip", "link", "set", f"{self._tag}v{number}", "master", f"{self._tag}br")
            run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", space, "link", "set", "eth0", "up")
            run("ip", "-n", space, "link", "set", "lo", "up")
            self.boot(number)
