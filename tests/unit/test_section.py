"""Tables of named choices: one class brings a name, its keys, its defaults and its faults."""

import json
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from pipeline.section import Choices, NamedSection, Section, faults, import_modules


class Shape(NamedSection):
    pass


SHAPES: Choices[Shape] = Choices("shape")


@SHAPES.add("circle", "disc")
class Circle(Shape):
    radius: float = Field(1.0, gt=0)


@SHAPES.add("polygon")
class Polygon(Shape):
    corners: tuple[int, ...]


class Drawing(Section):
    shape: Annotated[Shape, SHAPES] = Circle(name="circle")
    layers: tuple[Annotated[Shape, SHAPES], ...] = ()


def drawing_of(tree: dict[str, object]) -> Drawing:
    return Drawing.model_validate_json(json.dumps(tree))  # as a recipe is read: lists become tuples


def faults_of(tree: dict[str, object]) -> list[tuple[tuple[int | str, ...], type[Section] | None]]:
    with pytest.raises(ValidationError) as found:
        drawing_of(tree)
    return [(fault["loc"], section) for fault, section in faults(found.value)]


def test_a_name_alone_has_its_defaults_and_keys_may_be_given() -> None:
    assert drawing_of({"shape": "disc"}).shape == Circle(name="disc", radius=1.0)
    drawing = drawing_of({"shape": {"name": "polygon", "corners": [1, 2]}, "layers": ["circle"]})
    assert drawing.shape == Polygon(name="polygon", corners=(1, 2))
    assert drawing.layers == (Circle(name="circle"),)


def test_what_is_written_is_read_back() -> None:
    drawing = Drawing(shape=Polygon(name="polygon", corners=(3,)), layers=(Circle(name="disc", radius=2.0),))
    tree = drawing.model_dump(mode="json")
    assert tree["shape"] == {"name": "polygon", "corners": [3]}
    assert drawing_of(tree) == drawing


def test_faults_lie_where_they_are() -> None:
    assert faults_of({"shape": {"name": "circle", "radius": -1}}) == [(("shape", "radius"), Circle)]
    assert faults_of({"shape": {"name": "circle", "corners": [1]}}) == [(("shape", "corners"), Circle)]
    assert faults_of({"layers": ["circle", "polygon"]}) == [(("layers", 1, "corners"), Polygon)]
    assert faults_of({"shape": "square"}) == [(("shape",), None)]
    assert faults_of({"shape": 3, "other": 1}) == [(("shape",), None), (("other",), None)]


@pytest.mark.parametrize("value", ["square", 3, {"radius": 1.0}, {"name": 3}])
def test_an_unknown_name_is_refused_with_those_that_there_are(value: object) -> None:
    with pytest.raises(ValueError, match="wanted one of circle, disc, polygon"):
        SHAPES.parse(value)


def test_a_table_with_a_default_needs_no_name() -> None:
    shapes: Choices[Shape] = Choices("shape", default="polygon")
    shapes.add("polygon")(Polygon)
    shapes.add("circle")(Circle)
    assert shapes.parse({"corners": [1]}) == Polygon(name="polygon", corners=(1,))
    assert shapes.parse({"name": "circle", "radius": 2.0}) == Circle(name="circle", radius=2.0)
    with pytest.raises(ValueError, match="wanted one of polygon, circle"):
        shapes.parse({"name": None})


def test_every_module_of_a_package_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "__init__.py").write_text("found = []\n")
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(f"import toy_package\ntoy_package.found.append({name!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_modules("toy_package", [str(package)])
    assert sorted(sys.modules["toy_package"].found) == ["one", "two"]


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match="shape: 'circle' is there already"):
        SHAPES.add("circle")(Polygon)
    assert list(SHAPES) == ["circle", "disc", "polygon"] and "disc" in SHAPES and "square" not in SHAPES
