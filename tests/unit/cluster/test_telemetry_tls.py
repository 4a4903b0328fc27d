"""Endpoints over TLS: read by a client with and without a certificate, and by a real Prometheus."""

import re
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.monitoring import live
from cluster.telemetry import Telemetry, Tls
from pipeline.recipe.file import load_recipe
from pipeline.recipe.schema import Log, RecipeError
from pipeline.training.observers.exporter import endpoint_tls
from tests.unit.cluster.monitoring.test_monitoring import needs_prometheus, query, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl (Debian: apt-get install openssl)")


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem and the certificates that it signed, server.pem (for 127.0.0.1) and client.pem, with their keys."""
    folder = tmp_path_factory.mktemp("certificates")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(folder, *new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1\n")
        openssl(folder, *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(folder, *sign, "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return folder


@pytest.fixture
def mutual(files: Path) -> Tls:
    return Tls(files / "server.pem", files / "server.key", files / "ca.pem")


def read(port: int, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=30, context=context) as response:
        text: str = response.read().decode()
    return text


def client(files: Path, certificate: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    if certificate:
        context.load_cert_chain(files / "client.pem", files / "client.key")
    return context


def test_only_clients_with_a_certificate_are_answered(
    files: Path, mutual: Tls, capfd: pytest.CaptureFixture[str]
) -> None:
    with Telemetry(rank=0, host="h", job="j") as telemetry:
        port = telemetry.serve(0, tls=mutual) or 0
        with pytest.raises((ssl.SSLError, urllib.error.URLError, ConnectionError)):
            read(port, client(files, certificate=False))
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30)
        assert "spherescale_loss" in read(port, client(files, certificate=True))
    assert "Traceback" not in capfd.readouterr().err


def test_without_an_authority_for_clients_all_clients_are_answered(files: Path, mutual: Tls) -> None:
    with Telemetry(rank=0, host="h", job="j") as telemetry:
        port = telemetry.serve(0, tls=replace(mutual, client_ca=None)) or 0
        assert "spherescale_loss" in read(port, client(files, certificate=False))


def test_a_client_that_connects_and_sends_nothing_blocks_no_other(files: Path, mutual: Tls) -> None:
    with Telemetry(rank=0, host="h", job="j") as telemetry:
        port = telemetry.serve(0, tls=mutual) or 0
        with socket.create_connection(("127.0.0.1", port)):
            assert "spherescale_loss" in read(port, client(files, certificate=True))


def test_unusable_files_are_named(files: Path, mutual: Tls) -> None:
    mutual.check()
    for change, named in (
        ({"certificate": files / "none.pem"}, r"certificate .*none.pem, key .*: No such file or directory"),
        ({"key": files / "client.key"}, r"key .*client.key: .*key values mismatch"),
        ({"client_ca": files / "server.ext"}, r"client_ca .*server.ext: "),
    ):
        with pytest.raises(ValueError, match=f"{named}.*; wanted a PEM "):
            replace(mutual, **change).check()


@needs_prometheus
@pytest.mark.parametrize("certificate", [True, False])
def test_prometheus_reads_with_a_certificate_and_not_without(
    files: Path, mutual: Tls, tmp_path: Path, certificate: bool
) -> None:
    own = (files / "client.pem", files / "client.key") if certificate else (None, None)
    live.configure(tmp_path, files / "ca.pem", *own)
    config = tmp_path / "prometheus.yml"
    config.write_text(config.read_text().replace("5s", "200ms"))
    with Telemetry(rank=0, host="h", job="j") as telemetry, live.prometheus(tmp_path, 0) as base:
        telemetry.serve(0, tls=mutual)
        telemetry.announce(tmp_path / "targets")
        labels = wait_for(lambda: [labels for labels, up in query(base, "up") if up == certificate])[0]
        assert labels["rank"] == "0" and "__scheme__" not in labels


RECIPE = """
data: {shards: s, global_batch: 12}
backbone: {name: sphereface4}
optimizer: {steps: 1, learning_rate: 0.1}
"""


def test_a_recipe_names_certificate_and_key_together_and_existing_files(files: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert endpoint_tls(load_recipe(recipe)) is None
    with pytest.raises(RecipeError, match=r"log.metrics_key: got None with metrics_certificate /c.pem, wanted both"):
        load_recipe(recipe, ["log.metrics_certificate=/c.pem"])
    with pytest.raises(RecipeError, match=r"log.metrics_client_ca: got /ca.pem without metrics_certificate"):
        load_recipe(recipe, ["log.metrics_client_ca=/ca.pem"])
    both = [f"log.metrics_certificate={files}/server.pem", f"log.metrics_key={files}/server.key"]
    tls = endpoint_tls(load_recipe(recipe, both))
    assert tls == Tls(files / "server.pem", files / "server.key")
    with pytest.raises(
        RecipeError, match=re.escape(f"log.metrics_certificate {files}/ca.pem, key {files}/server.key: ")
    ):
        endpoint_tls(load_recipe(recipe, [f"log.metrics_certificate={files}/ca.pem", both[1]]))
    assert "metrics_client_ca" in Log.model_fields
