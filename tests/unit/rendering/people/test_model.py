import importlib.util
from pathlib import Path

import pytest

from cluster.versions import how_to_install
from pipeline.rendering import Model
from pipeline.rendering.people.assets import names_in, read_target


@pytest.mark.parametrize("missing", ["anny", "numba"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec("numpy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else there)
    with pytest.raises(ModuleNotFoundError) as raised:
        Model.load()
    assert str(raised.value) == f"rendering needs {missing}: {how_to_install('rendered')}"


def test_a_target_moves_the_vertices_that_it_lists(tmp_path: Path) -> None:
    import gzip

    import numpy as np

    path = tmp_path / "targets" / "nose" / "nose-test-incr.target.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"# a comment\n\n2 .5 -1 0.25\n0 1 2 3\n"))
    assert names_in(tmp_path, ["nose"]) == ["nose/nose-test-incr"]
    moves = read_target(path, 4, np.array([0, 1, 2]))
    assert moves.tolist() == [[1, 2, 3], [0, 0, 0], [0.5, -1, 0.25]]
