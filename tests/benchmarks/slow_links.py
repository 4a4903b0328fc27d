"""Links with a delay, without the kernel's own (netem), which not every kernel has: a process holds every frame.

`python -m tests.benchmarks.slow_links SECONDS SPACE=ADDRESS/BITS ...`: each network namespace gets an interface eth1
with that address; what one sends comes to the others so much later. It says "ready", and ends with its standard input.
Frames are as large as a host hands them to a network card (64 KiB): a gigabit takes a few thousand a second.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.end_to_end.hosts import run

# linux/if_tun.h
_SET_INTERFACE, _SET_OFFLOAD = 0x400454CA, 0x400454D0
_TAP, _NO_INFORMATION, _OFFLOAD_HEADER = 0x0002, 0x1000, 0x4000
_CHECKSUM, _TCP_4 = 0x01, 0x02
_HEADER = 10  # bytes of the offload header before each frame
_LARGEST = 1 << 17


@contextmanager
def slow_links(seconds: float, addresses: Mapping[str, str]) -> Iterator[None]:
    """Within the context the namespaces are joined by their eth1: namespace -> address with the network's bits."""
    places = [f"{space}={address}" for space, address in addresses.items()]
    command = [sys.executable, "-m", "tests.benchmarks.slow_links", str(seconds), *places]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as switch:
        assert switch.stdout is not None
        assert switch.stdin is not None
        assert switch.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            switch.stdin.close()


def _open(space: str, address: str) -> int:
    """A new eth1 of a namespace; the file that frames are read from and written to."""
    name = f"{space}t"
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TAP | _NO_INFORMATION | _OFFLOAD_HEADER))
    fcntl.ioctl(tap, _SET_OFFLOAD, _CHECKSUM | _TCP_4)
    run("ip", "link", "set", name, "netns", space, "name", "eth1")
    run("ip", "-n", space, "address", "add", address, "dev", "eth1")
    run("ip", "-n", space, "link", "set", "eth1", "up")
    return tap


def _forward(taps: list[int], seconds: float) -> None:
    """Pass frames on, each to the owner of its address, or to all others as long as that is not known."""
    owner: dict[bytes, int] = {}
    held: deque[tuple[float, list[int], bytes]] = deque()  # the delay is one: first in, first out
    end = sys.stdin.fileno()
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        ready, *_ = select.select([*taps, end], [], [], wait)
        if end in ready:
            return
        for tap in ready:
            frame = os.read(tap, _LARGEST)
            to, source = frame[_HEADER : _HEADER + 6], frame[_HEADER + 6 : _HEADER + 12]
            owner[source] = tap
            others = [owner[to]] if to in owner else [other for other in taps if other != tap]
            held.append((time.monotonic() + seconds, others, frame))
        while held and held[0][0] <= time.monotonic():
            _, others, frame = held.popleft()
            for other in others:
                os.write(other, frame)


if __name__ == "__main__":
    opened = [_open(*place.split("=")) for place in sys.argv[2:]]
    print("ready", flush=True)
    _forward(opened, float(sys.argv[1]))
