"""The input of figures and tables: the rows of one study, joined with the models' families and sizes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kt_study.settings import named
from orchestrator.results.report.plot import FAMILIES, OBJECTIVES

if TYPE_CHECKING:
    import pandas as pd

    from kt_study.loading import Results


UNKNOWN = "unknown family"

SETTINGS = (*named("objective", "training", "execution"), "teacher_order")
"""Settings in which two transfers of one pair may differ."""


class ShownSettings(msgspec.Struct, frozen=True):
    """The settings that figures show of an objective that was planned with several settings or seeds."""

    objective: str
    rows: int  # with these settings
    of: int  # in all
    settings: str  # the settings that vary, at the values shown


@dataclass(frozen=True)
class StudyResults:
    """The rows of one study.

    Its frames have the columns `family` (of the student), `teacher_family`, `student_params` and, by label, `objective`.
    """

    results: Results
    name: str

    @functools.cached_property
    def models(self) -> pd.DataFrame:
        """A row per model, families by label.

        Without students that transfers made, and without random weights that were never evaluated: the study only
        trains from these.
        """
        models = self.results.models
        weights = models["weights"].fillna("").astype(str)
        start = weights.str.startswith("random:") & models["dataset"].isna()
        models = models[~weights.str.startswith("transfer:") & ~start].drop_duplicates("model_key")
        built = self.results.evaluations.dropna(subset=["params"]).drop_duplicates("model_key")
        counted = built.set_index("model_key")["params"]  # when the models were built
        params = models["params"].fillna(models["model_key"].map(counted))
        return models.assign(family=models["family"].map(FAMILIES), params=params)

    @functools.cached_property
    def _every_pair(self) -> pd.DataFrame:
        """Pairs of the pair jobs and of the all-pairs files, which agree where both have a pair."""
        import pandas as pd

        frames = [frame for frame in (self.results.complementarity, self.results.all_pairs) if len(frame)]
        frame = pd.concat(frames, ignore_index=True) if frames else self.results.complementarity
        frame = frame.drop_duplicates(["dataset", "teacher_key", "student_key"])
        return self._on_main_dataset(self._with_models(frame))

    @functools.cached_property
    def baseline(self) -> pd.DataFrame:
        """The pairs whose teacher has random weights: the complementary knowledge that chance alone gives."""
        weights = self.results.models.set_index("model_key")["weights"].fillna("").astype(str)
        random = weights[weights.str.startswith("random:")].index
        return self._every_pair[self._every_pair["teacher_key"].isin(random)]

    @functools.cached_property
    def pairs(self) -> pd.DataFrame:
        """Every measured ordered pair once, on the main data set, without teachers that have random weights."""
        return self._every_pair[~self._every_pair.index.isin(self.baseline.index)]

    @functools.cached_property
    def single(self) -> pd.DataFrame:
        """Single-teacher transfers on the main data set, for each objective under its main settings."""
        frame = self._on_main_dataset(self.all_single)
        return frame[frame["shown"]]

    @functools.cached_property
    def all_single(self) -> pd.DataFrame:
        """Single-teacher transfers on all data sets and under all settings; `shown` marks the main ones."""
        frame = self.results.transfers
        return self._mark_main(self._with_models(frame[frame["multi_teacher"].fillna("single") == "single"]))

    @functools.cached_property
    def several(self) -> pd.DataFrame:
        """Transfers from several teachers on the main data set, under the main settings of each objective and mode.

        Of a sequence of teachers only its last stage. `teacher_set`: the keys of the teachers, sorted and joined by +.
        """
        frame = self.results.transfers
        frame = self._on_main_dataset(frame[frame["multi_teacher"].fillna("single") != "single"])
        frame = self._mark_main(_without_earlier_stages(self._with_models(frame)))
        sets = ["+".join(sorted(str(keys).split("+"))) for keys in frame["teacher_key"]]
        return frame.assign(teacher_set=sets)[frame["shown"]]

    @functools.cached_property
    def shown_settings(self) -> list[ShownSettings]:
        """The settings shown of each objective that has several on the main data set."""
        frame = self._on_main_dataset(self.all_single)
        found = []
        for objective, rows in frame.groupby("objective", sort=False):
            kept = rows[rows["shown"]]
            if len(kept) < len(rows):
                varying = [name for name in (*SETTINGS, "seed") if rows[name].nunique(dropna=False) > 1]
                values = ", ".join(f"{name} = {kept[name].iloc[0]}" for name in varying)
                found.append(ShownSettings(str(objective), len(kept), len(rows), values))
        return found

    @functools.cached_property
    def dataset(self) -> str:
        """The main data set: the one with most transfers, else with most pairs."""
        for frame in (self.results.transfers, self.results.complementarity, self.results.all_pairs):
            if len(frame):
                return str(frame["dataset"].mode().iloc[0])
        return ""

    @functools.cached_property
    def classes(self) -> int:
        """Classes of the main data set; 0 if unknown, as in rows of earlier versions."""
        counted = [
            frame.loc[frame["dataset"] == self.dataset, "n_classes"].dropna()
            for frame in (self.results.complementarity, self.results.all_pairs)
        ]
        return max((int(counts.max()) for counts in counted if len(counts)), default=0)

    @property
    def is_imagenet(self) -> bool:
        """Whether the paper's own plans fit this study's data."""
        return self.classes == 1000 if self.classes else "imagenet" in self.dataset.lower()

    def _on_main_dataset(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame["dataset"] == self.dataset]

    def _with_models(self, frame: pd.DataFrame) -> pd.DataFrame:
        known = self.models.set_index("model_key")
        student = known["family"].reindex(frame["student_key"]).fillna(UNKNOWN).to_numpy()
        teacher = known["family"].reindex(frame["teacher_key"]).fillna(UNKNOWN).to_numpy()
        params = known["params"].reindex(frame["student_key"]).to_numpy()
        frame = frame.assign(family=student, teacher_family=teacher, student_params=params)
        if "objective" in frame:
            frame = frame.assign(objective=frame["objective"].map(lambda name: OBJECTIVES.get(name, name)))
            frame = frame[frame["delta_transf"].notna()]
        return frame

    def _mark_main(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Mark, for each data set, objective and mode, the combination of settings with most rows."""
        import pandas as pd

        shown = pd.Series(False, index=frame.index)
        joined = _joined(frame, *SETTINGS, "seed")
        for _, rows in frame.groupby(["dataset", "objective", frame["multi_teacher"].fillna("single")], sort=False):
            combinations = joined[rows.index]
            most = sorted(combinations.mode())[0]
            shown.loc[rows.index[combinations == most]] = True
        return frame.assign(shown=shown)


def _without_earlier_stages(transfers: pd.DataFrame) -> pd.DataFrame:
    """Drop the stages of a sequence that a later stage of the same student, objective and settings follows."""
    named = _joined(transfers, "student_key", "objective", *SETTINGS, "seed", "teacher_key")
    sequential = (transfers["multi_teacher"] == "sequential").fillna(False).astype(bool)
    followed = {name.rpartition("+")[0] for name in named[sequential]}
    return transfers[~(sequential & named.isin(followed))]


def _joined(frame: pd.DataFrame, first: str, *others: str) -> pd.Series[str]:
    """The values of these columns as one text per row; missing values are empty."""
    columns = frame[[first, *others]].astype("string").fillna("")
    return columns[first].str.cat(columns[list(others)], sep="\x1f")


def order_of(labels: pd.Series[str]) -> tuple[str, ...]:
    """Objectives that appear, in their fixed order."""
    there = set(labels)
    known = [label for label in OBJECTIVES.values() if label in there]
    return (*known, *sorted(there - set(known)))
