import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.rendering import Model, Photo, Variation, jpeg, person, photo
from tests.renderer import needs_renderer

pytestmark = needs_renderer

ROOT = Path(__file__).parents[3]
# Without a compression in between, which Pillow's version has a part in.
PLAIN = Variation(jpeg=0)
PHOTOS = ((1, 0, 0), (1, 0, 1), (1, 7, 3), (20, 5, 11))
DIGEST = "2f3e17aec149e7be20a49259b6c568e28754163667e4347ed9af1a9945843478"
# As a processor without the newer instructions, such as sums fused with products: numba's and NumPy's own switches.
PLAINER = {
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512_SKX ASIMDFHM SVE",
}
IN_A_PROCESS = """
import hashlib
from pipeline.rendering import Model, Variation, person, photo
model = Model.load()
digest = hashlib.sha256()
for seed, number, image in %r:
    digest.update(photo(model, person(model, seed, number), image, variation=Variation(jpeg=0)).pixels.tobytes())
print(digest.hexdigest())
"""


def taken(model: Model, seed: int, number: int, image: int, variation: Variation = PLAIN) -> Photo:
    return photo(model, person(model, seed, number), image, variation=variation)


def test_the_bytes_are_the_stored_ones_in_any_order_and_on_a_plainer_processor(model: Model) -> None:
    backwards = {key: taken(model, *key).pixels.tobytes() for key in reversed(PHOTOS)}
    digest = hashlib.sha256(b"".join(backwards[key] for key in PHOTOS)).hexdigest()
    assert digest == DIGEST
    command = [sys.executable, "-W", "ignore", "-c", IN_A_PROCESS % (PHOTOS,)]
    other = subprocess.run(command, cwd=ROOT, env=os.environ | PLAINER, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [digest]


@pytest.mark.parametrize("size", [(112, 112), (112, 96)])
def test_a_photo_has_its_size_and_a_face_in_it(model: Model, size: tuple[int, int]) -> None:
    found = photo(model, person(model, 2, 0), 0, size=size)
    assert found.pixels.shape == (*size, 3) and found.pixels.dtype == np.uint8
    assert found.pixels.std() > 10
    assert (found.landmarks > 0).all() and (found.landmarks < size[1]).all()


def test_a_size_without_reference_points_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="size: got 64x64, wanted 112x96 or 112x112"):
        photo(model, person(model, 2, 0), 0, size=(64, 64))


def test_people_and_photographs_differ(model: Model) -> None:
    found = [taken(model, seed, number, image) for seed in (1, 2) for number in (0, 1) for image in (0, 1)]
    assert len({one.pixels.tobytes() for one in found}) == 8


def test_a_jpeg_is_the_photograph(model: Model) -> None:
    found = taken(model, 2, 0, 0)
    good, poor = jpeg(found), jpeg(found, 40)
    with Image.open(io.BytesIO(good)) as image:
        pixels = np.asarray(image).astype(float)
    assert np.abs(pixels - found.pixels).mean() < 4
    assert len(poor) < len(good)


KINDS = {
    "pose": (Variation(pose=0), {"yaw", "pitch", "roll"}),
    "expression": (Variation(expression=0), {"expression"}),
    "light": (Variation(light=False), {"light"}),
    "camera": (Variation(camera=False), {"distance"}),
    "alignment": (Variation(alignment=0), set()),
    "background": (Variation(background=False), {"background"}),
    "styling": (Variation(styling=1), {"style"}),
    "glasses": (Variation(glasses=30), {"glasses"}),
    "hats": (Variation(hats=1), {"hat"}),
    "masks": (Variation(masks=1), {"mask"}),
    "hands": (Variation(hands=1), {"hand"}),
    "resolution": (Variation(resolution=4), {"blur", "smaller"}),
    "jpeg": (Variation(jpeg=1), {"jpeg"}),
}  # fmt: skip


def test_every_switch_is_tried() -> None:
    assert set(KINDS) == set(Variation.__dataclass_fields__)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_switch_does_something_and_only_that(model: Model, kind: str) -> None:
    variation, own = KINDS[kind]
    who = person(model, 4, 1)
    changed, differs = set(), False
    for image in range(6):
        usual, other = photo(model, who, image), photo(model, who, image, variation=variation)
        changed |= {name for name in usual.attributes if usual.attributes[name] != other.attributes[name]}
        differs = differs or bool((usual.pixels != other.pixels).any())
        if kind not in ("pose", "expression", "camera", "alignment"):  # what moves no vertex moves no landmark
            assert (usual.landmarks == other.landmarks).all()
    assert differs
    assert changed == own


def test_without_variation_two_photographs_are_one(model: Model) -> None:
    nothing = Variation(
        pose=0, expression=0, light=False, camera=False, alignment=0, background=False, styling=0, glasses=0, hats=0,
        masks=0,
        hands=0, resolution=0, jpeg=0,
    )  # fmt: skip
    who = person(model, 4, 2)
    first, second = (photo(model, who, image, variation=nothing) for image in range(2))
    # The pupil is wider or narrower still.
    assert (np.abs(first.pixels.astype(int) - second.pixels).max(2) > 0).mean() < 0.01
    assert (first.landmarks == second.landmarks).all()
