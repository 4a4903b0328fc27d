"""Template fusion, 1:1 and 1:N rates against loops in the protocol's words."""

import numpy as np
import pytest

from pipeline.evaluation.scoring.bootstrap import roc_band
from pipeline.evaluation.scoring.gallery import search_rates
from pipeline.evaluation.scoring.templates import Templates, fuse, search_templates, verify_templates
from pipeline.evaluation.scoring.verification import ScoredPairs


def make_media(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 mentions, shuffled, of 7 templates with ids that are no row numbers."""
    generator = np.random.default_rng(seed)
    template = generator.choice([3, 9, 11, 40, 41, 100, 7], 60)
    medium = generator.integers(5, size=60)
    features = generator.normal(size=(60, 4)).astype(np.float32)
    return features, template, medium


def test_media_are_averaged_within_and_summed_across() -> None:
    features, template_M, medium_M = make_media()
    found = fuse(features.__getitem__, template_M, medium_M)
    assert found.ids.tolist() == sorted(set(template_M.tolist()))
    for template, row in zip(found.ids, found.features_TD, strict=True):
        expected = np.zeros(4)
        for medium in set(medium_M[template_M == template].tolist()):
            mine = [features[i] for i in range(60) if template_M[i] == template and medium_M[i] == medium]
            expected += np.mean(np.array(mine, np.float64), axis=0)
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_repeating_a_frame_of_a_video_changes_nothing_but_a_new_photograph_does() -> None:
    rows, one = np.array([[1.0, 0.0], [0.0, 1.0]]), np.ones(3, np.int64)
    assert fuse(rows.__getitem__, one[:2], np.array([5, 6])).features_TD.tolist() == [[1, 1]]
    repeated, photographs = np.array([5, 6, 6]), np.array([5, 6, 7])
    assert fuse(rows[[0, 1, 1]].__getitem__, one, repeated).features_TD.tolist() == [[1, 1]]
    assert fuse(rows[[0, 1, 1]].__getitem__, one, photographs).features_TD.tolist() == [[1, 2]]


def make_templates(seed: int = 1) -> tuple[Templates, np.ndarray, np.ndarray]:
    """40 templates of 10 subjects; subjects' ids and templates' ids overlap as numbers."""
    generator = np.random.default_rng(seed)
    subject = np.repeat(np.arange(10), 4)
    features = generator.normal(size=(10, 5))[subject] + generator.normal(size=(40, 5))
    ids = np.arange(40) * 3
    return Templates(ids, features), ids, subject


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (a @ a * (b @ b)) ** 0.5)


def test_one_to_one_rates_equal_a_loop_and_intervals_resample_subjects() -> None:
    templates, ids, subject = make_templates()
    a, b = np.triu_indices(40, 1)
    same = subject[a] == subject[b]
    subject_of = dict(zip(ids.tolist(), subject.tolist(), strict=True))
    result = verify_templates(templates, (ids[a], ids[b], same), subject_of, (0.1, 0.01), resamples=30)
    found = result.tar
    scores = np.array([cosine(templates.features_TD[i], templates.features_TD[j]) for i, j in zip(a, b, strict=True)])
    impostors = np.sort(scores[~same])[::-1]
    for entry in found:
        barrier = impostors[int(entry.far * len(impostors))]
        assert entry.tar.value == np.mean(scores[same] > barrier)
        assert entry.threshold == pytest.approx(scores[scores > barrier].min(), abs=1e-12)
        assert entry.tar.low <= entry.tar.value <= entry.tar.high
    direct = ScoredPairs.of(scores, same, np.zeros(len(a)), identity_a=subject[a], identity_b=subject[b])
    expected = roc_band(direct, np.array([0.1, 0.01]), 30)
    np.testing.assert_allclose([(entry.tar.low, entry.tar.high) for entry in found], expected, atol=1e-12)
    # Without subjects every template is its own: intervals over 40 "people" are narrower than over 10.
    alone = verify_templates(templates, (ids[a], ids[b], same), {}, (0.1,), resamples=30).tar
    assert alone[0].tar.value == found[0].tar.value
    assert alone[0].tar.low != found[0].tar.low
    for far, tar in result.curve:
        assert tar == np.mean(scores[same] > (impostors[int(far * 720 + 1e-9)] if far < 1 else -np.inf))
    with pytest.raises(ValueError, match=r"far: got 0.001 with 720 different pairs"):
        verify_templates(templates, (ids[a], ids[b], same), {}, (0.001,), 5)


def test_one_to_many_rates_equal_a_loop_and_the_mean_of_galleries_is_reported() -> None:
    """Two galleries without a subject in common; what is in one is outside the other."""
    templates, ids, subject = make_templates()
    first_of_subject = np.arange(40) % 4 == 0
    members = {"G1": first_of_subject & (subject < 5), "G2": first_of_subject & (subject >= 5) & (subject < 8)}
    galleries = {name: (ids[rows], subject[rows]) for name, rows in members.items()}
    probes = np.flatnonzero(~first_of_subject)
    fpirs = (0.25, 1 / 9)
    found = search_templates(templates, galleries, (ids[probes], subject[probes]), fpirs, resamples=20)
    assert list(found) == ["G1", "G2", "mean of G1 and G2"]
    expected = []
    for name, rows in members.items():
        gallery = np.flatnonzero(rows)
        table = np.array(
            [[cosine(templates.features_TD[p], templates.features_TD[g]) for g in gallery] for p in probes]
        )
        mated = np.isin(subject[probes], subject[gallery])
        mates = np.array(
            [max([-9, *row[subject[gallery] == s]]) for row, s in zip(table, subject[probes], strict=True)]
        )
        rank = np.sum(table >= mates[:, None], axis=1)  # the mate itself counts one
        alarms = np.sort(table[~mated].max(axis=1))[::-1]
        barriers = [alarms[int(fpir * len(alarms) + 1e-9)] for fpir in fpirs]
        rates = [np.mean(rank[mated] <= r) for r in (1, 5, 10)]
        rates += [np.mean((rank[mated] == 1) & (mates[mated] > barrier)) for barrier in barriers]
        expected.append(rates)
        ranks, tpirs = search_rates(found[name], fpirs)
        np.testing.assert_allclose([rate.value for rate in (*ranks, *(entry.tpir for entry in tpirs))], rates)
        assert [entry.fpir for entry in tpirs] == list(fpirs)
    ranks, tpirs = search_rates(found["mean of G1 and G2"], fpirs)
    mean = [*ranks, *(entry.tpir for entry in tpirs)]
    np.testing.assert_allclose([rate.value for rate in mean], np.mean(expected, axis=0))
    for rate in mean:
        assert rate.low <= rate.value <= rate.high
    alone = search_templates(templates, {"G1": galleries["G1"]}, (ids[probes], subject[probes]), fpirs, resamples=20)
    assert list(alone) == ["G1"]
    assert search_rates(alone["G1"], fpirs) == search_rates(found["G1"], fpirs)
    with pytest.raises(ValueError, match=r"fpir: got 0.01 with 15 searches for people outside the gallery"):
        search_templates(templates, galleries, (ids[probes], subject[probes]), (0.01,), 5)
    with pytest.raises(ValueError, match=r"got no probe whose identity is in the gallery"):
        search_templates(templates, galleries, (ids[probes], subject[probes] + 50), (), 5)


def test_a_mate_that_scores_as_a_forbidden_alarm_is_not_returned() -> None:
    """All probes alike: of two strangers' searches one may raise an alarm, so none of that score may."""
    templates = Templates(np.arange(4), np.ones((4, 3)))
    probes = np.array([1, 2, 3]), np.array([0, 8, 9])
    found = search_templates(templates, {"G": (np.array([0]), np.array([0]))}, probes, (0.5,), resamples=3)
    _, (entry,) = search_rates(found["G"], (0.5,))
    assert entry.tpir.value == 0


def test_a_template_without_images_is_named() -> None:
    templates, _, _ = make_templates()
    assert templates.rows(np.array([0, 117, 3])).tolist() == [0, 39, 1]
    assert templates.known(np.array([0, 4, 117, 999])).tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match=r"template 4: got no images \(and 1 more\)"):
        templates.rows(np.array([3, 4, 999]))
