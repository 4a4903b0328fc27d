"""Notifies a webhook of alerts, in the JSON that Prometheus' Alertmanager posts (webhook payload, version 4).

Alerts of one name and run are one group. A group is posted if one of its alerts begins or ends, and again every four
hours while any is firing. A post that fails is repeated at the next look.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from http.client import HTTPException
from threading import Event, Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

Result = TypeVar("Result")
LOOK_SECONDS = 10.0
REPEAT_SECONDS = 4 * 3600.0
_TIMEOUT_SECONDS = 20.0
_NEVER = "0001-01-01T00:00:00Z"  # Alertmanager's end of an alert that is firing


@dataclass(frozen=True)
class Alert:
    """An alert that is firing, or has ended at `ended` (RFC 3339)."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    started: str
    ended: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """Name and run."""
        return self.labels["alertname"], self.labels.get("job", "")

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits, the same for the same labels."""
        return hashlib.sha256(json.dumps(sorted(self.labels.items())).encode()).hexdigest()[:16]


@dataclass
class _Sent:
    """The alerts of a group as last posted, by fingerprint, and the time of the post on the monotonic clock."""

    alerts: dict[str, Alert]
    at: float


def payload(alerts: Sequence[Alert], page: str) -> dict[str, Any]:
    """The body of a post on the alerts of one group; `page` is the address of the live page."""
    name, job = alerts[0].group
    return {
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{name}", job="{job}"}}',
        "truncatedAlerts": 0,
        "status": "resolved" if all(alert.ended for alert in alerts) else "firing",
        "receiver": "webhook",
        "groupLabels": {"alertname": name, "job": job},
        "commonLabels": _common([alert.labels for alert in alerts]),
        "commonAnnotations": _common([alert.annotations for alert in alerts]),
        "externalURL": page,
        "alerts": [_entry(alert, page) for alert in alerts],
    }


def _entry(alert: Alert, page: str) -> dict[str, Any]:
    return {
        "status": "resolved" if alert.ended else "firing",
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "startsAt": alert.started,
        "endsAt": alert.ended or _NEVER,
        "generatorURL": page,
        "fingerprint": alert.fingerprint,
    }


def _common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    common = dict(mappings[0])
    for other in mappings[1:]:
        common = {key: value for key, value in common.items() if other.get(key) == value}
    return common


class Notifier:
    """Compares the alerts that Prometheus reports with those that were posted, and posts what changed.

    Args:
        webhook: the URL to post to.
        prometheus: base URL of the Prometheus to ask.
        page: address of the live page, for the receiver.

    Raises:
        ValueError: if `webhook` is no http or https URL.
    """

    def __init__(self, webhook: str, prometheus: str, page: str) -> None:
        self._webhook, self._prometheus, self._page = webhook, prometheus, page
        self._name = f"webhook on {_host_of(webhook)}"  # the URL itself may hold a secret
        self._sent: dict[tuple[str, str], _Sent] = {}
        self._failing: set[str] = set()

    def look(self) -> None:
        """Ask Prometheus once, and post every group that changed or is due again."""
        firing = self._attempt("Prometheus", self._firing)
        if firing is None:
            return
        now: dict[tuple[str, str], dict[str, Alert]] = defaultdict(dict)
        for alert in firing:
            now[alert.group][alert.fingerprint] = alert
        for group in sorted(now.keys() | self._sent.keys()):
            self._notify(group, now.get(group, {}))

    def _notify(self, group: tuple[str, str], firing: dict[str, Alert]) -> None:
        before = self._sent.get(group, _Sent({}, 0.0))
        due = time.monotonic() - before.at >= REPEAT_SECONDS
        if firing.keys() == before.alerts.keys() and not due:
            return
        end = datetime.now(timezone.utc).isoformat()
        ended = [replace(before.alerts[key], ended=end) for key in before.alerts if key not in firing]
        if self._attempt(self._name, lambda: self._post([*firing.values(), *ended])) is None:
            return
        if firing:
            self._sent[group] = _Sent(firing, time.monotonic())
        else:
            self._sent.pop(group, None)

    def _firing(self) -> list[Alert]:
        with urllib.request.urlopen(f"{self._prometheus}/api/v1/alerts", timeout=_TIMEOUT_SECONDS) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        firing = [alert for alert in alerts if alert["state"] == "firing"]
        return [Alert(alert["labels"], alert["annotations"], alert["activeAt"]) for alert in firing]

    def _post(self, alerts: list[Alert]) -> bool:
        body = json.dumps(payload(alerts, self._page)).encode()
        request = urllib.request.Request(self._webhook, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):
            return True

    def _attempt(self, whom: str, work: Callable[[], Result]) -> Result | None:
        """The result of `work`, or None after an error, which is printed once until it works again."""
        try:
            result = work()
        except (OSError, HTTPException, ValueError, KeyError) as error:  # what speaks no HTTP, or breaks off, included
            if whom not in self._failing:
                words = f"{str(error).strip()}; trying again every {LOOK_SECONDS:g} s"
                print(f"monitor: {whom}: {words}", file=sys.stderr, flush=True)
            self._failing.add(whom)
            return None
        if whom in self._failing:
            print(f"monitor: {whom}: works again", file=sys.stderr, flush=True)
        self._failing.discard(whom)
        return result


def _host_of(webhook: str) -> str:
    """The host of a URL that can be posted to; ValueError for any other."""
    with suppress(ValueError):  # of a port that is no number
        parts = urlsplit(webhook)
        whole = re.fullmatch(r"[!-~]+", webhook) and parts.port != 0
        if whole and parts.scheme in ("http", "https") and parts.hostname:
            return parts.hostname
    raise ValueError(f"--webhook: got {webhook!r}, wanted a URL such as https://host/path")


@contextmanager
def notifying(notifier: Notifier, every: float = LOOK_SECONDS) -> Iterator[None]:
    """Let the notifier look every `every` seconds, in a thread, while the context lasts."""
    ended = Event()

    def run() -> None:
        while not ended.wait(every):
            notifier.look()

    thread = Thread(target=run, daemon=True)  # a post that hangs must not keep the monitor from ending
    thread.start()
    try:
        yield
    finally:
        ended.set()
