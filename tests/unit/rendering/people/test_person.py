import numpy as np
import pytest

from pipeline.rendering import Model, Variation, person, photo
from pipeline.rendering.exact.draws import Draws
from pipeline.rendering.people.hair import drawn_hairline, growth, locks_of, smooth
from pipeline.rendering.people.model import PARTS
from pipeline.rendering.people.painting import bump, noise_at
from pipeline.rendering.people.person import both_directions
from pipeline.rendering.people.skin import TONES, lattice, tone
from pipeline.rendering.people.styles import COLOURS, STYLES, Style, drawn_style
from tests.renderer import needs_renderer

pytestmark = needs_renderer


def test_the_model_has_the_axes_and_parts_that_it_says(model: Model) -> None:
    assert len(model.axes) == 108 and len(model.shapes) == 216 and len(model.lopsided) == 58
    assert set(np.unique(model.part)) == set(range(len(PARTS)))
    assert [len(group) for group in model.landmarks[2:]] == [1, 1, 1]
    left, right, nose, left_corner, right_corner = (model.rest[group].mean(0) for group in model.landmarks)
    assert left[0] < nose[0] < right[0] and left_corner[0] < nose[0] < right_corner[0]
    assert left[1] > nose[1] > left_corner[1]


def test_a_person_follows_from_seed_and_number_alone(model: Model) -> None:
    alone = person(model, 1, 3)
    for number in (0, 1, 2):
        person(model, 1, number)
    again = person(model, 1, 3)
    assert again.attributes == alone.attributes
    assert (again.shape == alone.shape).all() and (again.skin == alone.skin).all()
    assert all((a.locks.points == b.locks.points).all() for a, b in zip(alone.worn, again.worn, strict=True))


def test_photographs_share_the_person_and_leave_it_alone(model: Model) -> None:
    who = person(model, 1, 3)
    shape, skin = who.shape.copy(), who.skin.copy()
    for image in range(3):
        photo(model, who, image, variation=Variation(hats=1, hands=1))
    assert (who.shape == shape).all() and (who.skin == skin).all()


def test_people_differ_in_shape_skin_and_hair(model: Model) -> None:
    people = [person(model, 1, number) for number in range(12)]
    for a, first in enumerate(people):
        for second in people[:a]:
            # More than a millimetre, in the mean over the vertices.
            assert np.linalg.norm(first.shape - second.shape, axis=1).mean() > 0.01
            assert np.abs(first.skin - second.skin).mean() > 0.005
    # In many directions, not along age, sex and ancestry alone.
    heads = [who.shape[model.rest[:, 1] > 6.2].astype(np.float64) for who in people]
    shapes = np.stack([(head - head.mean(0)).ravel() for head in heads])
    sizes = np.linalg.svd(shapes - shapes.mean(0), compute_uv=False)
    assert (sizes[:11] > 0.1 * sizes[0]).all()
    assert len({who.attributes["style"] for who in people}) > 3
    assert len({who.attributes["ancestry"] for who in people}) > 1


def test_amounts_go_to_the_target_of_their_direction() -> None:
    assert both_directions(np.array([0.5, -0.25])).tolist() == [0, 0.5, 0.25, 0]


def test_tones_go_between_their_neighbours() -> None:
    assert tone(0.0) == TONES[0] and tone(1.0) == TONES[-1] and tone(2.0) == TONES[-1]
    middle = tone(0.1)
    assert all(min(a, b) < m < max(a, b) for a, b, m in zip(TONES[0], TONES[1], middle, strict=True))


def test_noise_meets_its_lattice_and_repeats() -> None:
    cells = lattice()
    assert noise_at(cells, 3.0, 4.0, 5.0) == pytest.approx(cells[3, 4, 5])
    assert noise_at(cells, 35.25, 4.5, 5.75) == pytest.approx(noise_at(cells, 3.25, 36.5, -26.25), abs=1e-6)
    assert cells.min() >= -1 and cells.max() < 1 and abs(cells.mean()) < 0.02


def test_styles_are_written_with_the_fields_of_a_style() -> None:
    for name, ranges in STYLES.items():
        assert set(ranges) <= set(Style.__dataclass_fields__), name
        assert all(low <= high for low, high in ranges.values()), name


@pytest.mark.parametrize("sex", ["female", "male"])
def test_every_style_of_a_sex_is_worn(sex: str) -> None:
    worn = {drawn_style(Draws("s", n), sex, ("african", "caucasian")[n % 2], 60).name for n in range(600)}
    assert len(worn) >= 10 and worn <= set(STYLES)


def test_hair_grows_behind_the_hairline_and_not_before_the_face(model: Model) -> None:
    hairline = drawn_hairline(Draws("h", 1), "female", 30)
    grows = growth(hairline)
    assert grows.min() == 0 and grows.max() == 1
    middle = grows.shape[1] // 2
    assert (np.diff(grows[:, middle]) <= 0).all()  # in front from the top down to the hairline
    who = person(model, 1, 0)
    for name in ("straight", "curls", "tousled"):
        ranges = {field: (low + high) / 2 for field, (low, high) in STYLES[name].items()}
        normals = np.zeros_like(who.shape)
        normals[:, 1] = 1
        locks = locks_of(
            Style(name, **ranges),
            hairline,
            model.rest,
            who.shape,
            normals,
            model.skin,
            model.areas,
            model.chart.angle,
            1,
        )
        assert len(locks.width) > 500
        roots = locks.points[:, 0]
        eyes = who.shape[model.landmarks[0][0]]
        assert (roots[:, 1] > eyes[1] - 0.9).all()
        x, y, z = (locks.points[:, :, k] for k in range(3))
        face = (np.abs(x) < 0.3) & (z > eyes[2] - 0.2) & (y < eyes[1])
        assert face.any(1).mean() < 0.01


def test_colours_of_hair_go_from_dark_to_fair() -> None:
    brightness = [
        sum(COLOURS[name]) for name in ("black", "dark brown", "brown", "light brown", "blond", "light blond")
    ]
    assert brightness == sorted(brightness)


def test_smooth_goes_from_0_to_1() -> None:
    assert smooth(np.array([-1, 0, 0.5, 1, 2])).tolist() == [0, 0, 0.5, 1, 1]


def test_bumps_rise_from_0_at_low_to_1_at_high_either_way() -> None:
    for low, high in ((0.2, 0.6), (0.6, 0.2)):
        for x in np.linspace(0, 1, 41):
            t = min(max((x - low) / (high - low), 0.0), 1.0)
            assert bump(x, low, high) == t * t * (3 - 2 * t)
