"""The result of one evaluation: the rates that are reported, and the scores that they came from.

On disk an evaluation is ``step-00000123.json`` (rates and circumstances, for people and dashboards) beside
``step-00000123.npz`` (every score with its paths, from which every rate and plot can be computed again).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import read_npz
from pipeline.evaluation.drawn import Drawn, draws_to_bytes, read_draws
from pipeline.evaluation.scoring.angles import ClassAngles
from pipeline.evaluation.scoring.groups import GroupErrors
from pipeline.evaluation.scoring.insightface_rules import InsightFaceResult
from pipeline.evaluation.scoring.quality import RejectCurve
from pipeline.evaluation.scoring.rates import Rate, Record, TarAtFar, TpirAtFpir, Verification
from pipeline.evaluation.scoring.verification import ScoredPairs
from pipeline.files import write_file

_ANGLES = "angles."  # before the names of its arrays beside the scores

Rules = Literal["own", "insightface"]  # by which accuracies are reported, beside our own


class Settings(Record):
    """What a result depends on: a stored one with equal settings need not be computed again."""

    weights_sha256: str
    images: str
    pairs: str
    pairs_sha256: str
    far: tuple[float, ...]
    resamples: int
    seed: int
    without_sha256: str = ""  # of the names of people who are left out
    rules: Rules = "own"
    groups_sha256: str = ""  # of the file that has the group of each image


class Centred(Record):
    """K-fold accuracy by the authors' script, which subtracts a mean (see `verification.centred_kfold`)."""

    accuracy: float
    deviation: float


class Summary(Record):
    """The JSON beside the scores."""

    step: int
    settings: Settings
    verification: Verification
    centred: Centred
    network: str = ""
    left_out: tuple[str, ...] = ()  # images without features, with their pairs
    insightface: InsightFaceResult | None = None  # if the settings ask for its rules
    groups: tuple[GroupErrors, ...] = ()
    without_group: int = 0  # images that the file of groups does not have
    rejects: tuple[RejectCurve, ...] = ()


class Identification(Drawn):
    """What identification reports, with intervals over the probes' identities: each mate hidden among distractors
    (MegaFace), or a gallery that is searched.

    Attributes:
        cmc: the share of trials whose mate has rank 1, at most 2, ...
        tar: true accept rates of the mates at FARs over every probe and distractor; none of a gallery.
        trials, identities, distractors: how many of each the result rests on.
        listing_sha256: digest of the lists of images and their people.
        gallery: images of known people that were searched; 0 if there was no gallery.
        strangers: searches for people outside the gallery.
        resamples, seed: of the bootstrap; 0 resamples: not known.
        tpir: true positive identification rates at FPIRs over the strangers' searches.
    """

    step: int
    weights_sha256: str
    listing_sha256: str
    cmc: tuple[Rate, ...]
    tar: tuple[TarAtFar, ...]
    trials: int
    identities: int
    distractors: int
    confidence: float
    network: str = ""
    gallery: int = 0
    strangers: int = 0
    resamples: int = 0
    seed: int = 0
    tpir: tuple[TpirAtFpir, ...] = ()

    @property
    def compared(self) -> str:
        """Digest of what is compared: results of equal ones stand side by side."""
        return f"{self.listing_sha256} {self.distractors}"


class Gallery(Record):
    """1:N search of one gallery: closed-set rates at `ijb.RANKS`, open-set rates."""

    name: str
    ranks: tuple[Rate, ...]
    tpir: tuple[TpirAtFpir, ...]


class TemplateResult(Drawn):
    """What IJB reports, with intervals over subjects.

    Attributes:
        listing_sha256: digest of the protocol's files.
        curve: points of the 1:1 ROC, FAR and TAR, from the lowest FAR that the pairs resolve.
        fusion: the rule by which images entered their templates, in the letters of `fusion.Fusion`.
    """

    step: int
    weights_sha256: str
    templates: int
    genuine: int
    impostors: int
    tar: tuple[TarAtFar, ...]
    galleries: tuple[Gallery, ...]
    network: str = ""
    listing_sha256: str = ""
    curve: tuple[tuple[float, float], ...] = ()
    fusion: str = "N1D0F1"

    @property
    def compared(self) -> str:
        """Digest of what is compared, and the rule: results of equal ones stand side by side."""
        return f"{self.listing_sha256} {self.fusion}"


Kept = TypeVar("Kept", Identification, TemplateResult)


@dataclass(frozen=True)
class Evaluation:
    """A summary with its scores: `P` pairs, and the paths `[P]` of their images below the image folder.

    `angles` is None in files of an earlier version.
    """

    summary: Summary
    pairs: ScoredPairs
    path_a: NDArray[np.str_]
    path_b: NDArray[np.str_]
    angles: ClassAngles | None = None

    def without_scores(self) -> Evaluation:
        """The summary alone: a long run has hundreds of evaluations, whose scores take megabytes each."""
        none = np.zeros(0, np.int64)
        return Evaluation(self.summary, self.pairs.select(none), self.path_a[none], self.path_b[none])

    @property
    def step(self) -> int:
        """The checkpoint that was evaluated."""
        return self.summary.step

    @property
    def network(self) -> str:
        """The name of the network."""
        return self.summary.network

    @property
    def compared(self) -> str:
        """Digest of what is compared: results of equal ones stand side by side."""
        settings = self.summary.settings
        words = (settings.pairs_sha256, settings.without_sha256, *self.summary.left_out)
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


def save_summary(result: Identification | TemplateResult, folder: Path) -> Path:
    """Write the result of ``result.step`` and its draws below `folder`, the summary last: if it exists, both are."""
    folder.mkdir(parents=True, exist_ok=True)
    file = result_file(folder, result.step)
    file.unlink(missing_ok=True)  # an older summary must not stand beside newer draws
    file.with_suffix(".npz").unlink(missing_ok=True)
    if result.draws:
        write_file(file.with_suffix(".npz"), draws_to_bytes(result.draws))
    write_file(file, (result.model_dump_json(indent=2) + "\n").encode())
    return file


def load_identification(file: Path) -> Identification:
    """Read what `save_summary` wrote; raises ValueError naming a file that it cannot use."""
    try:
        return _with_draws(Identification.model_validate_json(file.read_bytes()), file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a complete identification: {str(error).splitlines()[0]}") from error


def load_templates(file: Path) -> TemplateResult:
    """Read what `save_summary` wrote of templates; raises ValueError naming a file that it cannot use."""
    try:
        return _with_draws(TemplateResult.model_validate_json(file.read_bytes()), file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a complete result of templates: {str(error).splitlines()[0]}") from error


def _with_draws(result: Kept, file: Path) -> Kept:
    return result.model_copy(update={"draws": read_draws(file.with_suffix(".npz"))})


def result_file(folder: Path, step: int) -> Path:
    """The file of the summary of `step`; its scores are beside it as ``.npz``."""
    return folder / f"step-{step:08d}.json"


def save(evaluation: Evaluation, folder: Path) -> Path:
    """Write both files below `folder`, the summary last: if it exists, the evaluation is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    file = result_file(folder, evaluation.summary.step)
    arrays: dict[str, Any] = {"path_a": evaluation.path_a, "path_b": evaluation.path_b}
    if evaluation.angles is not None:
        arrays |= {f"{_ANGLES}{name}": value for name, value in vars(evaluation.angles).items()}
    scores = io.BytesIO()
    np.savez_compressed(scores, **vars(evaluation.pairs), **arrays)
    file.unlink(missing_ok=True)  # an older summary must not stand beside newer scores
    write_file(file.with_suffix(".npz"), scores.getvalue())
    write_file(file, (evaluation.summary.model_dump_json(indent=2) + "\n").encode())
    return file


def load(file: Path) -> Evaluation:
    """Read what `save` wrote, given the summary's path; raises ValueError naming a file it cannot use."""
    try:
        summary = Summary.model_validate_json(file.read_bytes())
        columns = read_npz(file.with_suffix(".npz"))
        paths = columns.pop("path_a"), columns.pop("path_b")
        stored = [name for name in columns if name.startswith(_ANGLES)]
        angles = {name.removeprefix(_ANGLES): columns.pop(name) for name in stored}
        return Evaluation(summary, ScoredPairs.of(**columns), *paths, ClassAngles(**angles) if angles else None)
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file}: not a complete evaluation: {reason}; evaluate again with --force") from error
