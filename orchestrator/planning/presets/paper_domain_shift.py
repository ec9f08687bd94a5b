"""Section B.5: teachers that were fine-tuned on another domain."""

from __future__ import annotations

from orchestrator.planning.presets.paper import IMAGENET_SUBSET, PAPER, arms_of, cross, names_of
from orchestrator.planning.presets.record import DatasetNeed, FineTuning, Preset

INFOGRAPH = DatasetNeed(name="domainnet-infograph", kind="domainnet", classes=345, train=36_023, val=15_582)

BATCH = 64
LR = 0.01 * BATCH / 256
"""The authors' 0.01 (run_infograph_pretrain.sh), which main_pretrain.py scales by batch/256."""


def build() -> Preset:
    """The 32 pairs of Table 6 on 10 % of ImageNet, with teachers fine-tuned on DomainNet Infograph."""
    teachers = names_of(6, "teacher")
    pairs = cross(names_of(6, "student"), teachers)
    return Preset(
        name="paper-domain-shift",
        title="8 students x 4 teachers fine-tuned on DomainNet Infograph, 10 % of ImageNet",
        source=f"{PAPER}, Section B.5; run_infograph_pretrain.sh, main_distillation.py and plots/rebuttal.py of "
        "ExplainableML/FantasticGains",
        arms=arms_of(("kl", "xe_kl_mcl", "kl_dp"), pairs, IMAGENET_SUBSET),
        datasets=(IMAGENET_SUBSET, INFOGRAPH),
        fine_tuning=(
            FineTuning(models=teachers, dataset=INFOGRAPH.name, scope="body", epochs=50, batch_size=BATCH, lr=LR),
        ),
        notes=(
            "All layers of the teacher are fine-tuned on Infograph; then its ImageNet last layer is restored, as the released "
            "main_distillation.py loads it. The script trains every layer. The released configuration file would train only "
            "the last layer, which would not change such a teacher.",
            "Infograph is the study file's [fine_tuning.dataset]; its name is added to that of the teachers.",
            "Students, teachers and objectives are those in the figures of the authors' plots/rebuttal.py.",
        ),
    )
