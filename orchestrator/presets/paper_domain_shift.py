"""Section B.5: teachers that were fine-tuned on another domain."""

from __future__ import annotations

from orchestrator.presets.paper import IMAGENET_SUBSET, PAPER, arms_of, cross, names_of
from orchestrator.presets.record import DatasetNeed, FineTuning, Preset

INFOGRAPH = DatasetNeed(name="domainnet-infograph", classes=345)


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
        fine_tuning=(FineTuning(models=teachers, dataset=INFOGRAPH.name, scope="all", epochs=50, lr=0.01),),
        notes=(
            "The teacher is fine-tuned as a whole on Infograph and then keeps its ImageNet last layer, as the released "
            "main_distillation.py loads it. The script trains every layer; the released configuration file would train "
            "the last one alone, which would leave no trace in such a teacher.",
            "Students, teachers and objectives are those that the authors' plots/rebuttal.py draws.",
        ),
    )
