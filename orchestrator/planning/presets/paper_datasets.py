"""Section B.4: fine-grained and other data sets, last layers fine-tuned first."""

from __future__ import annotations

from orchestrator.planning.presets.paper import PAPER, arms_of, cross, names_of
from orchestrator.planning.presets.record import DatasetNeed, FineTuning, Preset

DATASETS = (
    DatasetNeed(name="cub-200", kind="cub200", classes=200, train=5_994, val=5_794),
    DatasetNeed(name="caltech-256", kind="caltech256", classes=257, train=24_486, val=6_121),  # clutter is a class
    DatasetNeed(name="stanford-cars", kind="stanford_cars", classes=196, train=8_144, val=8_041),
)
HEAD_LR = {"cub-200": 0.1, "caltech-256": 0.1, "stanford-cars": 0.01}
"""Learning rates of the last layer in the authors' run_{cub,caltech,cars}_pretrain.sh, at 256 samples per step: their
main_pretrain.py scales them by batch/256."""

HEAD_EPOCHS, HEAD_BATCH = 50, 256


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
            FineTuning(
                models=models,
                dataset=dataset.name,
                scope="head",
                epochs=HEAD_EPOCHS,
                batch_size=HEAD_BATCH,
                lr=HEAD_LR[dataset.name],
            )
            for dataset in DATASETS
        ),
        notes=(
            "The nine students are those of the authors' scripts: the eight of Table 6 and Mixer-L16. The four "
            "teachers are those of Table 6.",
            "Students and teachers get a new last layer, which alone is trained; the transfers have the settings of ImageNet.",
            "During this training, the rest of the model is frozen and in eval mode. The released code leaves batch norm in "
            "train mode, so that its statistics change.",
            "A study has one data set: plan the preset once for each of the three.",
        ),
    )
