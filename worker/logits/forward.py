"""Forwards a model over a split into the cache, at the speed of bare inference."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import kt_study
from kt_study.datasets import list_split, predictions
from kt_study.errors import DataError, WeightsError
from kt_study.paths import StudyPaths
from kt_study.records import DatasetRecord, LogitsSpec, ModelRecord, Progress
from worker.data.loader import Views, evaluation_views, training_views
from worker.data.views import ViewRecipe
from worker.job.context import JobContext, Stopped
from worker.logits.cache import LogitsCache
from worker.logits.columns import SIDE, as_side, half, side_bits
from worker.logits.copies import Columns, one_behind
from worker.logits.entry import CachedLogits
from worker.logits.writer import EntryWriter
from worker.models.build import build_model, with_features


def cached_logits(spec: LogitsSpec, context: JobContext) -> CachedLogits:
    """The logits of this specification, from the cache, or made now.

    Raises:
        DataError: an unreadable image, or labels that the model has no outputs for.
        WeightsError, UnknownModelError: a model that cannot be built, or gives logits that are not finite.
        DiskError: the disk is full.
        Stopped: asked to stop; the next attempt resumes after the last batch.
    """
    cache = LogitsCache(context.paths)

    def make_again() -> None:
        cached_logits(spec, context)

    if (found := cache.open(spec, make_again=make_again)) is not None:
        return found
    dataset, model = context.records.dataset(spec.dataset), context.records.model(spec.model)

    def waiting() -> None:
        context.report(Progress(note=f"waiting for the logits of {model.name}, which another worker makes"))
        if context.stopping():
            raise Stopped

    def fill(writer: EntryWriter) -> dict[str, Any]:
        if dataset.kind == "predictions":
            return _fill_from_file(writer, spec, dataset, model, context.paths)
        return _fill_by_forwarding(writer, spec, dataset, model, context)

    return cache.make(spec, dataset.splits[spec.split], fill, waiting=waiting, make_again=make_again)


def versions() -> str:
    """python, torch, timm and kt-study, as in rows and manifests."""
    import timm

    return (
        f"python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__},"
        f" kt-study {kt_study.__version__}"
    )


def device_name(device: torch.device) -> str:
    """cpu, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _fill_by_forwarding(
    writer: EntryWriter, spec: LogitsSpec, dataset: DatasetRecord, model: ModelRecord, context: JobContext
) -> dict[str, Any]:
    began = time.perf_counter()
    labels = _labels(spec, dataset, model, context)
    views = _views(spec, dataset, model, context)
    network = build_model(model, context.paths, context.device)
    forward = with_features(network) if spec.features else network
    rest = np.arange(writer.rows, views.n)  # by samples, not batches, whose size may have changed

    def forwarded() -> Iterator[dict[str, torch.Tensor]]:
        for images, positions in views.batches(rest, context.options.eval_batch_size, view=spec.view):
            if context.stopping():
                return
            yield _columns(forward(images), None if labels is None else labels[positions], model)

    with torch.inference_mode():
        for columns in one_behind(forwarded()):
            writer.append(_checked(columns, model, writer.rows))
            context.report(Progress(step=writer.rows, steps=views.n, note=f"forwarding {model.name}"))
    if writer.rows < views.n and context.stopping():
        writer.save()
        raise Stopped
    return {
        "n_classes": model.num_classes,
        "weights": model.weights,
        "versions": versions(),
        "device": device_name(context.device),
        "seconds": time.perf_counter() - began,
        "params": sum(parameter.numel() for parameter in network.parameters()) / 1e6,
    }


def _labels(spec: LogitsSpec, dataset: DatasetRecord, model: ModelRecord, context: JobContext) -> torch.Tensor | None:
    """int64 [n] on the device, None without labels. Raises DataError for a label without an output of the model."""
    labels = list_split(dataset, spec.split, context.paths)[0].labels
    if labels is None:
        return None
    if (highest := int(labels.max(initial=-1))) >= model.num_classes:
        raise DataError(
            f"data set {dataset.name!r} has class {highest}, but model {model.name!r} only {model.num_classes} outputs"
        )
    return torch.from_numpy(labels.astype(np.int64)).to(context.device)


def _columns(output: Any, labels: torch.Tensor | None, model: ModelRecord) -> dict[str, torch.Tensor]:
    logits, features = output if isinstance(output, tuple) else (output, None)
    logits = logits.float()
    if logits.ndim != 2 or logits.shape[1] != model.num_classes:
        raise WeightsError(
            f"model {model.name!r} gives outputs of shape {tuple(logits.shape[1:])}, not [{model.num_classes}]"
        )
    columns = {"logits": half(logits), "side": side_bits(logits, labels)}
    return columns if features is None else {**columns, "features": half(features.float())}


def _checked(columns: Columns, model: ModelRecord, row: int) -> Columns:
    """The columns as they are stored, from sample `row` on. Raises WeightsError for logits that are not finite."""
    side = as_side(columns["side"])
    if not np.isfinite(side["logsumexp"]).all():
        first = row + int(np.flatnonzero(~np.isfinite(side["logsumexp"]))[0])
        raise WeightsError(f"model {model.name!r} gives logits that are not finite, first at sample {first}")
    return {**columns, "side": side}


def _views(spec: LogitsSpec, dataset: DatasetRecord, model: ModelRecord, context: JobContext) -> Views:
    if spec.view < 0:
        return evaluation_views(
            dataset,
            spec.split,
            model,
            context.paths,
            device=context.device,
            workers=context.options.loader_workers,
            worker_cache=context.worker_cache,
        )
    return training_views(
        dataset,
        spec.split,
        model,
        ViewRecipe(augment=spec.augment, seed=spec.view_seed, crop_pct=spec.crop_pct or 1.0),  # type: ignore[arg-type]
        context.paths,
        device=context.device,
        workers=context.options.loader_workers,
        worker_cache=context.worker_cache,
        loader=spec.loader,
    )


def _fill_from_file(
    writer: EntryWriter, spec: LogitsSpec, dataset: DatasetRecord, model: ModelRecord, paths: StudyPaths
) -> dict[str, Any]:
    """Predictions made elsewhere as an entry of side columns only, for everything that needs only argmax and labels."""
    listing, class_names = list_split(dataset, spec.split, paths)
    side = np.zeros(len(listing.names), SIDE)
    for name in ("logsumexp", "log_p_label", "log_p_max", "p_label", "p_max"):
        side[name] = np.nan
    side["label"] = listing.labels
    side["argmax"] = predictions.predicted_classes(dataset, model.name, listing.names, class_names)
    writer.append({"side": side, "logits": np.zeros((len(side), 0), np.float16)})
    return {
        "n_classes": 0,
        "weights": model.weights,
        "versions": versions(),
        "device": "",
        "source": "predictions made elsewhere",
    }
