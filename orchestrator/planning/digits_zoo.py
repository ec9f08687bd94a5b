"""The embedded zoo: twelve small classifiers of handwritten digits, each trained on different data.

They differ in architecture and in recipe: most are trained with a quarter of the samples of two or three classes, some with
a share of the data, noisy labels or noisy pixels. So each knows something that others do not, and none is perfect.
"""

from __future__ import annotations

from typing import Any

from kt_study.job_kinds import planned_job
from kt_study.records import DatasetRecord, ModelRecord, PlannedJob, TrainSpec
from kt_study.training import UNTRAINED, keyed, trained_record

_THIN = 0.25


def _timm(family: str, architecture: str, **arguments: Any) -> dict[str, Any]:
    return {"family": family, "timm": architecture, "arguments": arguments}


def _ours(factory: str, **arguments: Any) -> dict[str, Any]:
    return {"family": "mlp", "factory": f"worker.zoo:{factory}", "arguments": {"num_classes": 10, **arguments}}


def _thin(*classes: int) -> dict[str, float]:
    return {str(label): _THIN for label in classes}


_VIT = {"img_size": 32, "patch_size": 8}
_POOLED = {"global_pool": "avg", "class_token": False}
_MLP = {"img_size": 32, "patch_size": 8}

_ZOO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "digits/resnet_a": (
        _timm("cnn", "resnet18", layers=[1, 1, 1, 1], channels=[16, 32, 64, 128], stem_width=16),
        {"class_shares": _thin(0, 8), "epochs": 10},
    ),
    "digits/resnet_b": (
        _timm("cnn", "resnet18", layers=[1, 1, 1, 1], channels=[16, 24, 32, 48], stem_width=16),
        {"class_shares": _thin(3, 5, 9), "epochs": 14, "lr": 2e-3, "label_noise": 0.05},
    ),
    "digits/convnext_a": (
        _timm("cnn", "convnext_atto", depths=[1, 1, 1, 1], dims=[16, 32, 48, 64], patch_size=4),
        {"class_shares": _thin(1, 7), "epochs": 20},
    ),
    "digits/convnext_b": (
        _timm("cnn", "convnext_atto", depths=[1, 1, 2, 1], dims=[16, 32, 48, 64], patch_size=2),
        {"class_shares": _thin(2, 6), "epochs": 16, "pixel_noise": 0.3},
    ),
    "digits/vit_a": (
        _timm("transformer", "vit_tiny_patch16_224", embed_dim=64, depth=3, num_heads=4, **_VIT, **_POOLED),
        {"class_shares": _thin(4, 9), "epochs": 20, "lr": 3e-3},
    ),
    "digits/vit_b": (
        _timm("transformer", "vit_tiny_patch16_224", embed_dim=48, depth=2, num_heads=3, **_VIT, **_POOLED),
        {"class_shares": _thin(0, 6), "epochs": 30, "lr": 4e-3, "share": 0.8},
    ),
    "digits/deit": (
        _timm("transformer", "deit_tiny_distilled_patch16_224", embed_dim=64, depth=2, num_heads=4, **_VIT),
        {"class_shares": _thin(1, 8), "epochs": 30, "lr": 2e-3},
    ),
    "digits/vit_relpos": (
        _timm("transformer", "vit_relpos_small_patch16_224", embed_dim=64, depth=3, num_heads=4, **_VIT),
        {"class_shares": _thin(5, 7), "epochs": 20, "lr": 3e-3, "label_noise": 0.05},
    ),
    "digits/mixer_a": (
        _ours("mixer", embed_dim=64, num_blocks=4, **_MLP),
        {"class_shares": _thin(2, 3), "epochs": 20},
    ),
    "digits/mixer_b": (
        _ours("mixer", embed_dim=48, num_blocks=3, **_MLP),
        {"class_shares": _thin(4, 8, 9), "epochs": 16, "lr": 2e-3, "pixel_noise": 0.3},
    ),
    "digits/resmlp": (
        _ours("resmlp", embed_dim=64, num_blocks=4, **_MLP),
        {"class_shares": _thin(0, 5), "epochs": 20, "lr": 1e-2},
    ),
    "digits/gmlp": (
        _ours("gmlp", embed_dim=64, num_blocks=3, **_MLP),
        {"class_shares": _thin(6, 7), "epochs": 20, "share": 0.8},
    ),
}


def digits_zoo(dataset: DatasetRecord, *, seed: int) -> tuple[list[ModelRecord], list[ModelRecord], list[PlannedJob]]:
    """The zoo for one seed: trained models, the untrained ones from which they start, and their `train` jobs."""
    trained, untrained, jobs = [], [], []
    for number, (name, (build, recipe)) in enumerate(_ZOO.items()):
        start = keyed(
            name=name + UNTRAINED,
            weights=f"random:{seed + number}",
            input_size=(3, 32, 32),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            num_classes=dataset.n_classes,
            **build,
        )
        spec = TrainSpec(
            dataset=dataset.key,
            split="zoo",
            start=start.key,
            seed=seed + number,
            batch_size=32,
            **recipe,
        )
        job = planned_job("train", spec, estimate_s=10.0, student=start)
        untrained.append(start)
        jobs.append(job)
        trained.append(trained_record(start, spec, job.digest, dataset))
    return trained, untrained, jobs
