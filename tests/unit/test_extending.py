"""docs/extending.md: every recipe names files that are there, few of them, and the test that proves it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Recipe -> the most files of the source that it may touch.
LIMITS = {
    "A backbone": 2,
    "A margin": 2,
    "A kernel of the head": 2,
    "An augmentation": 1,
    "An optimizer": 2,
    "A metric, with its panel": 3,
    "A source of shards": 2,
    "An observer of training": 2,
    "A tracker": 1,
}


def recipes() -> dict[str, str]:
    """Title -> text."""
    _, *sections = (ROOT / "docs" / "extending.md").read_text().split("\n## ")
    titles_and_texts = (section.partition("\n") for section in sections)
    return {title: text for title, _, text in titles_and_texts}


def touched(text: str) -> list[str]:
    """Files that a recipe has the reader touch."""
    return re.findall(r"`((?:pipeline|cluster)/[\w/]+\.py)`", text.split("**Touch**")[1].split("\n\n", maxsplit=1)[0])


def test_there_is_a_recipe_for_every_seam() -> None:
    assert list(recipes()) == list(LIMITS)


@pytest.mark.parametrize("title", LIMITS)
def test_a_recipe_touches_few_files_that_are_there(title: str) -> None:
    files = touched(recipes()[title])
    assert 1 <= len(files) <= LIMITS[title]
    for file in files:
        place = ROOT / file
        assert place.is_file() or (place.name == "mine.py" and place.parent.is_dir()), file


@pytest.mark.parametrize("title", LIMITS)
def test_a_recipe_names_the_test_that_proves_it(title: str) -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)`", recipes()[title])
    assert proofs
    for proof in proofs:
        assert (ROOT / proof).is_file(), proof


def test_sketches_are_python() -> None:
    sketches = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL)
    assert len(sketches) >= 3
    for sketch in sketches:
        ast.parse(sketch)
