"""Section B.4: fine-grained and other data sets, last layers fine-tuned first."""

from __future__ import annotations

from orchestrator.presets.paper import PAPER, arms_of, cross, names_of
from orchestrator.presets.record import DatasetNeed, FineTuning, Preset

DATASETS = (
    DatasetNeed(name="cub-200", classes=200),
    DatasetNeed(name="caltech-256", classes=257, note="256 categories and clutter"),
    DatasetNeed(name="stanford-cars", classes=196),
)
HEAD_LR = {"cub-200": 0.1, "caltech-256": 0.1, "stanford-cars": 0.01}
"""Learning rates of the last layer in the authors' run_{cub,caltech,cars}_pretrain.sh."""

HEAD_EPOCHS = 50


def students() -> tuple[str, ...]:
    """The eight students of Table 6, and Mixer-L16."""
    return (*names_of(6, "student"), *names_of(5, "student", ["Mixer-L16"]))


def build() -> Preset:
    """9 students x 4 teachers on each data set, for KL, XE-KL+MCL and KL+DP."""
    teachers = names_of(6, "teacher")
    pairs = cross(students(), teachers)
    models = tuple(sorted({*students(), *teachers}))
    return Preset(
        name="paper-datasets",
        title="9 students x 4 teachers on CUB-200, Caltech-256 and Stanford Cars",
        source=f"{PAPER}, Section B.4; run_cub_pretrain.sh, run_caltech_pretrain.sh, run_cars_pretrain.sh and "
        "plots/rebuttal.py of ExplainableML/FantasticGains",
        arms=tuple(arm for dataset in DATASETS for arm in arms_of(("kl", "xe_kl_mcl", "kl_dp"), pairs, dataset)),
        datasets=DATASETS,
        fine_tuning=tuple(
            FineTuning(models=models, dataset=dataset.name, scope="head", epochs=HEAD_EPOCHS, lr=HEAD_LR[dataset.name])
            for dataset in DATASETS
        ),
        notes=(
            "The nine students are those of the authors' scripts: the eight of Table 6 and Mixer-L16. The four "
            "teachers are those of Table 6.",
            "Students and teachers get a new last layer, trained alone; the transfer has the settings of ImageNet.",
        ),
    )
