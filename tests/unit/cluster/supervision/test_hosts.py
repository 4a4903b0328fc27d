"""Hosts are read from the hostfile in order, and given as many ranks as fit the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.supervision.hosts import answers, assign, read_hostfile, variables_of_hosts


def test_a_hostfile_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# two machines\nbeta slots=8\n\nalpha  slots=4  # the small one\n")
    assert list(read_hostfile(path).items()) == [("beta", 8), ("alpha", 4)]


@pytest.mark.parametrize("line", ["alpha", "alpha slots=x", "alpha slots=0", "a b slots=1", "beta slots=1"])
def test_a_faulty_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"beta slots=8\n{line}\n")
    with pytest.raises(ValueError, match=r"hosts line 2: got .*, wanted a new host as 'name slots=N'"):
        read_hostfile(path)


def test_an_empty_hostfile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# no host\n")
    with pytest.raises(ValueError, match="got no host"):
        read_hostfile(tmp_path / "hosts")


def test_a_host_that_others_would_look_for_on_themselves_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("localhost slots=8\n")
    assert read_hostfile(path) == {"localhost": 8}
    path.write_text("localhost slots=8\nbeta slots=8\n")
    with pytest.raises(ValueError, match="got localhost beside other hosts, wanted a name by which they too reach"):
        read_hostfile(path)


def test_ranks_are_as_many_as_divide_the_batch() -> None:
    hosts = {"a": 4, "b": 4, "c": 4}
    assert assign(hosts, lambda ranks: 16 % ranks == 0) == {"a": 4, "b": 4}
    assert assign(hosts, lambda ranks: 12 % ranks == 0) == hosts
    assert assign({"a": 4, "b": 3}, lambda ranks: 12 % ranks == 0) == {"a": 4, "b": 2}
    assert assign(hosts, lambda ranks: ranks > 12) == {}
    assert assign({}, lambda _: True) == {}


def test_only_hosts_on_which_the_command_succeeds_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor word; do host=$before; before=$word; done\nsh -c "$word"\n[ "$host" = alpha ]\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert answers(["alpha", "beta"], "echo here", 60) == {"alpha": "here\n"}


def test_variables_for_all_hosts_are_those_of_deepspeeds_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    for folder, text in ((here, "A=1\nB=two words\n"), (home, "A=0\n\nC=3\n")):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text(text)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.chdir(here)
    assert dict(line.split("=", 1) for line in variables_of_hosts()) == {"A": "1", "B": "two words", "C": "3"}
    monkeypatch.chdir(tmp_path)
    assert variables_of_hosts() == ["A=0", "C=3"]
