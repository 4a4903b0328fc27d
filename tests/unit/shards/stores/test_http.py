"""Web servers that refuse or break off: a fault names the place, and is of a kind that the commands show in a line."""

import contextlib
import http.server
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.files import NotWrittenError
from pipeline.shards.images import SetAsideError
from pipeline.shards.sources import remote
from pipeline.shards.sources.detect import open_source
from pipeline.shards.stores import urls
from tests.shards import noise
from tests.web import serving

aiohttp = pytest.importorskip("aiohttp")

# What is sent for a path: a status, bytes, and how many bytes are promised.
Answer = tuple[int, bytes, int]
REFUSED, BROKEN = (403, b"", 0), (503, b"", 0)


@contextlib.contextmanager
def served(answers: Callable[[str], Answer], pause: float = 0) -> Iterator[str]:
    """A server that answers each path so, and ends the connection if it has fewer bytes than it promised.

    With a pause, in seconds, it sends four bytes at a time.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            status, body, length = answers(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(ConnectionError):
                    for first in range(0, len(body), 4 if pause else 1 << 20):
                        time.sleep(pause)
                        self.wfile.write(body[first : first + (4 if pause else 1 << 20)])
            self.close_connection = True

        def log_message(self, *_args: Any) -> None:
            pass

    with serving(Handler) as url:
        yield f"{url}/faces"


def whole(body: bytes) -> Answer:
    return 200, body, len(body)


def links(*names: str) -> Answer:
    return whole("".join(f'<a href="{name}">{name}</a>' for name in names).encode())


def faces(path: str, image: Answer) -> Answer:
    """Two images of one person, the second of which is sent so."""
    there = {"/faces": links("ann/"), "/faces/ann": links("1.jpg", "2.jpg"), "/faces/ann/1.jpg": whole(noise(1))}
    return there.get(path.rstrip("/"), image)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(REFUSED, "not listed: 403.*Forbidden"), (BROKEN, "not listed: 503"), ((200, b"<a", 99), "not listed: Response")],
)
def test_a_server_that_lists_nothing_is_named(tmp_path: Path, answer: Answer, words: str) -> None:
    with served(lambda _path: answer) as url, pytest.raises(NotWrittenError, match=f"{url}: {words}"):
        open_source(url, copies=tmp_path / "copies")


def test_a_large_file_that_is_cut_on_the_way_is_not_taken(tmp_path: Path) -> None:
    def cut(path: str) -> Answer:
        return (200, b"half", 99) if path.endswith(".tar") else links("a.tar")

    with served(cut) as url, pytest.raises(NotWrittenError, match=r"copies/a\.tar: not copied: Response"):
        open_source(url, copies=tmp_path / "copies")
    assert not list((tmp_path / "copies").glob("*.tar*"))


@pytest.fixture
def opened_anew() -> Iterator[None]:
    """The library keeps what it has opened, with how long it waits."""
    fsspec.get_filesystem_class("http").clear_instance_cache()
    yield
    fsspec.get_filesystem_class("http").clear_instance_cache()


@pytest.mark.usefixtures("opened_anew")
@pytest.mark.parametrize("silence", [0.1, 30])
def test_a_large_file_may_take_long_but_not_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: float
) -> None:
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    monkeypatch.setattr(urls, "SILENCE", silence)
    stopped: Any = pytest.raises(NotWrittenError, match=r"a\.rec: not copied: Connection timed out")
    end = stopped if silence < 0.25 else contextlib.nullcontext()
    with served(lambda _path: (200, b"slow" * 4, 16), pause=0.25) as url, end:
        urls.fetch_whole(*urls.open_store(url), tmp_path / "a.rec")
    assert (tmp_path / "a.rec").is_file() == (silence > 0.25)


def test_an_image_that_is_refused_is_set_aside(tmp_path: Path) -> None:
    with served(lambda path: faces(path, REFUSED)) as url:
        source = open_source(url, copies=tmp_path / "copies")
        assert source.read(0) == noise(1)
        with pytest.raises(SetAsideError, match="unreadable: PermissionError"):
            source.read(1)


@pytest.mark.parametrize("image", [BROKEN, (200, noise(2)[:99], 9999)])
def test_an_image_that_does_not_arrive_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Answer
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0, 0))
    asked: list[str] = []

    def later(path: str) -> Answer:
        asked.append(path)
        return faces(path, whole(noise(2)) if asked.count("/faces/ann/2.jpg") == 3 else image)

    with served(later) as url:
        both = open_source(url, copies=tmp_path / "copies").read_many(np.arange(2))
        assert [data for _, data, _ in both] == [noise(1), noise(2)]
    assert [asked.count(f"/faces/ann/{number}.jpg") for number in (1, 2)] == [1, 3]


@pytest.mark.parametrize("image", [BROKEN, (200, noise(2)[:99], 9999)])
def test_an_image_that_never_arrives_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Answer
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0, 0))
    with served(lambda path: faces(path, image)) as url:
        source = open_source(url, copies=tmp_path / "copies")
        with pytest.raises(NotWrittenError, match=r"ann/2\.jpg: not read: "):
            source.read(1)
