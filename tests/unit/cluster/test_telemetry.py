"""The metrics of a rank, scraped over HTTP and parsed with prometheus_client's parser."""

import json
import logging
import math
import mmap
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import METRICS, PARTS, PREFIX, SHARDING_METRICS, Metric, evaluation_metrics
from cluster.telemetry import Telemetry

LABELS = {"job": "demo", "rank": "3", "host": "node-1"}
ALONE = "127.44.3.1"


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry(rank=3, host="node-1", job="demo")
    yield made
    made.close()


def serve(telemetry: Telemetry, port: int = 0, address: str = "127.0.0.1") -> int:
    taken = telemetry.serve(port, address)
    assert taken is not None
    return taken


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Every sample by its name and its own label's value (or a bucket's bound); constant labels are checked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert LABELS.items() <= labels.items(), sample
            (own,) = [v for k, v in labels.items() if k not in LABELS] or [""]
            samples[sample.name, own] = sample.value
    return samples


def test_what_is_scraped_is_what_was_reported(telemetry: Telemetry) -> None:
    telemetry.set("loss", 2.5)
    telemetry.set("step", 7)
    telemetry.add("samples_total", 512)
    telemetry.add("samples_total", 512)
    telemetry.add("step_part_seconds_total", 0.25, "head")
    telemetry.observe("step_seconds", 0.3)
    telemetry.observe("step_seconds", 4.0)
    got = scrape(serve(telemetry))
    assert got["spherescale_loss", ""] == 2.5
    assert got["spherescale_step", ""] == 7
    assert got["spherescale_samples_total", ""] == 1024
    assert got["spherescale_step_part_seconds_total", "head"] == 0.25
    assert got["spherescale_step_seconds_count", ""] == 2
    assert got["spherescale_step_seconds_sum", ""] == 4.3
    assert got["spherescale_step_seconds_bucket", "0.2"] == 0
    assert got["spherescale_step_seconds_bucket", "0.5"] == 1
    assert got["spherescale_step_seconds_bucket", "+Inf"] == 2


def test_counters_exist_at_0_before_the_first_event_and_gauges_do_not(telemetry: Telemetry) -> None:
    got = scrape(serve(telemetry))
    for metric in METRICS:
        names = [f"{metric.name}_{part}" for part in ("sum", "count")] if metric.buckets else [metric.name]
        for name in names:
            for value in metric.values or ("",):
                assert ((PREFIX + name, value) in got) == (metric.kind != "gauge"), name
                assert metric.kind == "computed" or got.get((PREFIX + name, value), 0) == 0
    assert {own for name, own in got if name == "spherescale_step_part_seconds_total"} == set(PARTS)


def test_a_gauge_appears_with_its_first_value(telemetry: Telemetry) -> None:
    port = serve(telemetry)
    telemetry.set("target_angle_radians", 0.0, "p50")
    got = scrape(port)
    angles = {own: value for (name, own), value in got.items() if name == "spherescale_target_angle_radians"}
    assert angles == {"p50": 0}
    assert ("spherescale_loss", "") not in got


def test_types_and_help_reach_prometheus(telemetry: Telemetry) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{serve(telemetry)}/metrics", timeout=30) as response:
        families = {f.name: f for f in text_string_to_metric_families(response.read().decode())}
    for metric in METRICS:
        # The parser names a counter's family without its suffix.
        family = families[PREFIX + metric.name.removesuffix("_total")]
        assert family.type == {"computed": "gauge"}.get(metric.kind, metric.kind)
        assert family.documentation == metric.help


def test_checkpoint_age_grows_between_scrapes_and_a_save_resets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 2.0**30  # so that sums are exact
    monkeypatch.setattr(time, "time", lambda: now)
    with Telemetry(rank=3, host="node-1", job="demo") as telemetry:
        port = serve(telemetry)
        monkeypatch.setattr(time, "time", lambda: now + 100)
        before = scrape(port)
        telemetry.checkpoint_saved(3.5)
        monkeypatch.setattr(time, "time", lambda: now + 130)
        after = scrape(port)
    assert before["spherescale_checkpoint_age_seconds", ""] == 100  # none yet: since the start
    assert before["spherescale_checkpoint_timestamp_seconds", ""] == 0
    assert after["spherescale_checkpoint_age_seconds", ""] == 30
    assert after["spherescale_checkpoint_timestamp_seconds", ""] == now + 100
    assert after["spherescale_checkpoint_save_seconds_sum", ""] == 3.5


def test_memory_is_read_at_the_scrape(telemetry: Telemetry) -> None:
    port = serve(telemetry)
    before = scrape(port)
    # Mapped by hand: the allocator may give memory that an earlier test left resident.
    held = mmap.mmap(-1, 64 << 20)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    after = scrape(port)
    grown = after["spherescale_resident_memory_bytes", ""] - before["spherescale_resident_memory_bytes", ""]
    assert 0.9 * len(held) < grown < 2 * len(held)
    assert after["spherescale_gpu_allocated_bytes", ""] == 0


def test_free_disk_space_is_that_of_the_runs_folder_and_a_lost_folder_fails_no_scrape(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with Telemetry(rank=3, host="node-1", job="demo", folder=run) as telemetry:
        port = serve(telemetry)
        # other processes write meanwhile
        free = pytest.approx(shutil.disk_usage(run).free, rel=0.2, abs=2**30)
        assert scrape(port)["spherescale_run_disk_free_bytes", ""] == free
        run.rmdir()
        assert math.isnan(scrape(port)["spherescale_run_disk_free_bytes", ""])


def test_a_gpu_that_cannot_be_read_fails_no_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pytest.importorskip("torch.cuda")
    for reading in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(cuda, reading, lambda _: 5)
    busy: dict[str, Callable[[int], float]] = {"read": lambda _: 40, "refused": lambda _: 1 / 0}
    for case, want in (("read", 0.4), ("refused", math.nan)):
        monkeypatch.setattr(cuda, "utilization", busy[case])
        with Telemetry(rank=3, host="node-1", job="demo", cuda_device=0) as telemetry:
            got = scrape(serve(telemetry))
        assert got["spherescale_gpu_utilisation_ratio", ""] == pytest.approx(want, nan_ok=True)
        assert got["spherescale_gpu_allocated_bytes", ""] == 5


def test_a_port_in_use_is_a_warning_and_another_is_taken(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    port = serve(telemetry)
    with (
        caplog.at_level(logging.WARNING, "cluster.telemetry"),
        Telemetry(rank=3, host="node-1", job="demo") as second,
    ):
        second.set("loss", 1.0)
        other = serve(second, port)
        assert other != port
        assert scrape(other)["spherescale_loss", ""] == 1
        assert json.loads(second.announce(tmp_path).read_text())[0]["targets"] == [f"127.0.0.1:{other}"]
    (record,) = caplog.records
    assert f"127.0.0.1 port {port} is in use; serving on port {other}" in record.getMessage()


def test_an_address_of_another_machine_is_a_warning_and_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING, "cluster.telemetry"),
        Telemetry(rank=3, host="node-1", job="demo") as telemetry,
    ):
        assert telemetry.serve(0, "192.0.2.1") is None
        telemetry.set("loss", 1.0)
    (record,) = caplog.records
    assert "no endpoint on 192.0.2.1 port 0 (Cannot assign requested address)" in record.getMessage()


def test_two_endpoints_in_one_process_are_apart(telemetry: Telemetry) -> None:
    second = Telemetry(rank=3, host="node-1", job="demo")
    ports = serve(telemetry), serve(second)
    telemetry.set("loss", 1.0)
    second.set("loss", 2.0)
    assert [scrape(port)["spherescale_loss", ""] for port in ports] == [1.0, 2.0]
    second.close()
    assert not [m.name for m in REGISTRY.collect() if m.name.startswith(PREFIX)]


def test_close_stops_the_thread_and_frees_the_port(telemetry: Telemetry) -> None:
    before = set(threading.enumerate())  # not their number: those that answered earlier scrapes may be ending
    # An address of its own: on 127.0.0.1 another process could be given the port once it is free.
    port = serve(telemetry, address=ALONE)
    assert set(threading.enumerate()) > before & set(threading.enumerate())
    telemetry.close()
    telemetry.close()
    assert set(threading.enumerate()) <= before
    assert serve(telemetry, port, ALONE) == port


def test_prometheus_finds_the_endpoint_until_it_is_closed(telemetry: Telemetry, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="wanted serve first"):
        telemetry.announce(tmp_path)
    port = serve(telemetry)
    file = telemetry.announce(tmp_path / "targets")
    assert json.loads(file.read_text()) == [{"targets": [f"127.0.0.1:{port}"], "labels": LABELS}]
    assert [p.name for p in file.parent.iterdir()] == ["demo-3.json"]
    telemetry.close()
    assert not file.exists()


def test_an_endpoint_on_every_address_is_found_under_the_hosts_name(telemetry: Telemetry, tmp_path: Path) -> None:
    port = serve(telemetry, address="0.0.0.0")
    assert json.loads(telemetry.announce(tmp_path).read_text())[0]["targets"] == [f"node-1:{port}"]


def test_a_smaller_run_forgets_the_ranks_that_it_no_longer_has(telemetry: Telemetry, tmp_path: Path) -> None:
    for rank in (0, 4, 12):
        (tmp_path / f"demo-{rank}.json").touch()
    telemetry.serve(0)
    telemetry.announce(tmp_path)
    assert {p.stem for p in tmp_path.iterdir()} == {"demo-0", "demo-3", "demo-4", "demo-12"}
    telemetry.announce(tmp_path, num_ranks=4)
    assert {p.stem for p in tmp_path.iterdir()} == {"demo-0", "demo-3"}


def test_a_rank_that_fails_stays_announced(tmp_path: Path) -> None:
    def run(error: Exception | None) -> list[str]:
        with Telemetry(rank=3, host="node-1", job="demo") as telemetry:
            telemetry.serve(0)
            telemetry.announce(tmp_path)
            if error:
                raise error
        return [p.name for p in tmp_path.iterdir()]

    assert run(None) == []
    with pytest.raises(ValueError, match="not finite"):
        run(ValueError("not finite"))
    assert [p.name for p in tmp_path.iterdir()] == ["demo-3.json"]


def test_misuse_names_what_is_wanted(telemetry: Telemetry) -> None:
    with pytest.raises(ValueError, match=r"metric: got 'los', wanted one of ranks, step,"):
        telemetry.set("los", 1)
    with pytest.raises(ValueError, match=r"samples_total: got a gauge's call, wanted that of a counter"):
        telemetry.set("samples_total", 1)
    with pytest.raises(ValueError, match=r"checkpoint_age_seconds: got a gauge's call, wanted that of a computed"):
        telemetry.set("checkpoint_age_seconds", 1)
    with pytest.raises(ValueError, match=r"step_part_seconds_total: label: got 'lunch', wanted one of data_wait,"):
        telemetry.add("step_part_seconds_total", 1, "lunch")
    with pytest.raises(ValueError, match=r"loss: label: got 'head', wanted no label"):
        telemetry.set("loss", 1, "head")
    with pytest.raises(ValueError, match="non-negative"):
        telemetry.add("samples_total", -1)


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"name": "Loss", "kind": "gauge"}, "lower case"),
        ({"name": "samples", "kind": "counter"}, "_total on counters"),
        ({"name": "samples_total", "kind": "gauge"}, "_total on counters"),
        ({"name": "step_ms", "kind": "gauge"}, "a base unit"),
        ({"name": "step_seconds", "kind": "gauge"}, "ends with its unit ''"),
        ({"name": "step", "kind": "gauge", "unit": "seconds"}, "ends with its unit 'seconds'"),
        ({"name": "wait_total", "kind": "counter", "label": "part"}, "a label together with"),
        ({"name": "step_seconds", "kind": "histogram", "unit": "seconds"}, "buckets on histograms"),
    ],
)
def test_a_row_against_the_conventions_is_refused(row: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=f"metric: got {row['name']!r} .*wanted .*{wanted}"):
        Metric(help="x", **row)


@pytest.mark.parametrize("table", [METRICS, SHARDING_METRICS])
def test_names_are_unique(table: tuple[Metric, ...]) -> None:
    assert len({metric.name for metric in table}) == len(table)
    assert all(metric.help.endswith(".") for metric in table)


def test_a_kind_of_run_has_a_table_of_its_own() -> None:
    with Telemetry(rank=3, host="node-1", job="demo", metrics=SHARDING_METRICS) as sharding:
        sharding.add("sharded_samples_total", 5)
        got = scrape(serve(sharding))
        assert got["spherescale_sharded_samples_total", ""] == 5
        assert got["spherescale_elapsed_seconds", ""] >= 0
        assert ("spherescale_loss", "") not in got
        with pytest.raises(ValueError, match="metric: got 'loss', wanted one of samples_to_shard, "):
            sharding.set("loss", 1)


def test_the_sets_of_a_run_are_the_values_of_its_evaluation_metrics() -> None:
    assert evaluation_metrics([]) == ()
    metrics = METRICS + evaluation_metrics(["lfw", "agedb"])
    with Telemetry(rank=3, host="node-1", job="demo", metrics=metrics) as run:
        run.set("evaluation_accuracy_ratio", 0.875, "lfw")
        run.set("evaluation_best_accuracy_ratio", 0, "agedb")
        got = scrape(serve(run))
        accuracies = {key: value for key, value in got.items() if "accuracy" in key[0]}
        assert accuracies == {
            ("spherescale_evaluation_accuracy_ratio", "lfw"): 0.875,
            ("spherescale_evaluation_best_accuracy_ratio", "agedb"): 0,
        }
        with pytest.raises(ValueError, match="label: got 'cfp', wanted one of lfw, agedb"):
            run.set("evaluation_accuracy_ratio", 0.5, "cfp")


def test_foreign_files_among_the_targets_stay(telemetry: Telemetry, tmp_path: Path) -> None:
    foreign = {"notes.json", "other-12.json", "demo-12.json.bak", "demo-x.json", "my-demo-12.json"}
    for name in {*foreign, "demo-12.json"}:
        (tmp_path / name).touch()
    telemetry.serve(0)
    telemetry.announce(tmp_path, num_ranks=4)
    assert {file.name for file in tmp_path.iterdir()} == {*foreign, "demo-3.json"}
