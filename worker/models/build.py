"""Builds a classifier from its record: architecture from timm or the user's own factory, weights from any source."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kt_study.errors import ArtefactGone, DiskError, UnknownModelError, WeightsError
from kt_study.files import atomic_write, file_digest
from kt_study.paths import StudyPaths
from kt_study.records import ModelRecord
from kt_study.trust import require_own
from worker.models.weights_file import first_line, fitting_state, read_weights, state_dicts

_STATE_DIGEST = "blake2b"


def build_model(record: ModelRecord, paths: StudyPaths, device: torch.device) -> nn.Module:
    """The classifier with its weights, float32, in eval mode, on the device.

    Args:
        record: what to build. `weights` says whence: "timm:..." fetches timm's own, "random:<seed>" leaves the
            initialisation of that seed, "train:<digest>" reads what a `train` job left, anything else is the digest of
            `checkpoint`.
        paths: of the study; its folder is searched for factories.

    Raises:
        UnknownModelError: a timm name or factory that does not resolve.
        ArtefactGone: weights that a job left are missing or damaged.
        WeightsError: weights that are missing, unreadable, changed since planning, or do not fit.
    """
    source, _, rest = record.weights.partition(":")
    if source == "timm" and rest:
        model = _timm_model(record, pretrained=True)
    elif source == "random" and rest:
        model = initialised(record, paths, seed=int(rest))
    elif source in ("train", "transfer") and rest:
        model = initialised(record, paths, seed=0)
        _load(model, left_state(paths, rest), paths.weights(rest), record.name)
    else:
        model = initialised(record, paths, seed=0)
        load_weights(model, _checkpoint(record, paths), record.name)
    return model.eval().to(device)


def check_model(record: ModelRecord, paths: StudyPaths) -> list[str]:
    """Refuse what `build_model` would refuse of a factory or a local checkpoint, without reading weights, and a factory's
    model whose outputs are not the classes.

    Returns notes: what was chosen in the checkpoint, and whether predictions depend on the batch.

    Raises:
        UnknownModelError, WeightsError: as `build_model`.
    """
    model = _outline(record, paths)
    if record.factory:
        _check_outputs(model, record)
    notes = []
    if record.checkpoint:
        checkpoint = paths.cache / record.checkpoint
        how = _load(model, read_weights(checkpoint, lazily=True), checkpoint, record.name, assign=True)
        notes += [f"model {record.name!r}: read from {checkpoint.name}: {how}"] if how else []
    if without := _without_statistics(model):
        notes.append(
            f"model {record.name!r}: {without} of its batch norms keep no running statistics, so that its predictions depend "
            "on which images are evaluated together; its results hold for one batch size only"
        )
    return notes


def initialised(record: ModelRecord, paths: StudyPaths, *, seed: int) -> nn.Module:
    """The architecture with the random weights of `seed`, on the CPU. Raises UnknownModelError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _timm_model(record, pretrained=False) if record.timm else _factory_model(record, paths)


def load_weights(model: nn.Module, checkpoint: Path, name: str) -> None:
    """Load a checkpoint strictly: every tensor of the model, no tensor besides, every shape equal.

    Raises:
        WeightsError: with the first few names that do not fit.
    """
    _load(model, read_weights(checkpoint), checkpoint, name)


def left_state(paths: StudyPaths, job: str) -> dict[str, torch.Tensor]:
    """The state dict that a job left, checked against the digest in the file's header.

    Args:
        job: digest of the job.

    Raises:
        ArtefactGone: the file is missing or damaged.
    """
    from safetensors import safe_open

    path = paths.weights(job)
    try:
        with safe_open(path, framework="pt") as stream:  # names as they are: no training script has wrapped them
            stated = (stream.metadata() or {}).get(_STATE_DIGEST)
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 -- no mapping
    except Exception as error:  # safetensors raises many kinds for a damaged file
        raise ArtefactGone(f"{path}: {'damaged' if path.exists() else 'gone'}; its job is done again", [job]) from error
    if stated is not None and stated != _state_digest(state):
        raise ArtefactGone(f"{path}: damaged, its values are not those that were written; its job is done again", [job])
    return state


def _state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """blake2b-128 over names, types, shapes and values, by name; tensors on the CPU."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save_state(target: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace the file `target` with a state dict, as safetensors, with a digest of its values in the header.

    Args:
        state: tensors on any device.
        metadata: for the file's header.

    Raises:
        DiskError: no space or no permission.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    try:
        with atomic_write(target) as scratch:
            save_file(tensors, scratch, metadata={**(metadata or {}), _STATE_DIGEST: _state_digest(tensors)})
    except SafetensorError as error:  # it says in words what the system said
        raise DiskError(f"cannot write {target}: {error}; free space or choose another folder") from error


def weights_digest(path: Path) -> str:
    """Digest of a local weights file, 32 hex digits, as it stands in `ModelRecord.weights`. Raises WeightsError."""
    try:
        stat = path.stat()
        return _digest_of(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise WeightsError(f"{path}: no such checkpoint; correct `checkpoint` in the study file") from error


def with_features(model: nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The model as a function images -> (logits [b, classes], features [b, d]).

    Features are what the classifier sees: timm's `forward_head(..., pre_logits=True)`; for other modules the input of
    the last linear layer. Raises WeightsError for a model that has neither.
    """
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        return functools.partial(_timm_with_features, model)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise WeightsError(f"{type(model).__name__} has no linear layer whose input could serve as features")
    return functools.partial(_hooked_with_features, model, linear[-1])


@functools.lru_cache(maxsize=256)
def _digest_of(path: Path, mtime_ns: int, size: int) -> str:  # noqa: ARG001
    return file_digest(path)


def _checkpoint(record: ModelRecord, paths: StudyPaths) -> Path:
    checkpoint = paths.cache / record.checkpoint  # an absolute path stays what it is
    if weights_digest(checkpoint) != record.weights:
        raise WeightsError(f"model {record.name!r}: {checkpoint} has changed since the study was planned; plan again")
    return checkpoint


def _timm_model(record: ModelRecord, *, pretrained: bool) -> nn.Module:
    import timm

    name = record.timm
    if not timm.is_model(name.removeprefix("hf_hub:").removeprefix("hf-hub:").split("/")[-1]) and ":" not in name:
        raise UnknownModelError(
            f"model {record.name!r}: timm {timm.__version__} has no architecture {name!r}; correct `timm`"
        )
    arguments = dict(record.arguments)
    if not pretrained:
        arguments.setdefault("num_classes", record.num_classes)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
    except Exception as error:  # the hub, the network and the architecture raise many kinds
        if pretrained:
            raise WeightsError(
                f"model {record.name!r}: weights of timm's {name!r} cannot be had ({first_line(error)}); fetch them"
                " where there is a network, or give a local `checkpoint`"
            ) from error
        raise UnknownModelError(
            f"model {record.name!r}: timm cannot build {name!r}: {first_line(error)}; correct `timm` or `arguments`"
        ) from error
    classes = getattr(model, "num_classes", record.num_classes)
    if classes != record.num_classes:
        raise WeightsError(
            f"model {record.name!r}: {name!r} has {classes} outputs, not {record.num_classes}; correct `num_classes`"
        )
    return model


def _factory_model(record: ModelRecord, paths: StudyPaths) -> nn.Module:
    module_name, _, attribute = record.factory.partition(":")
    with _importable(paths.root):
        _require_own_module(module_name, paths.root)
        try:
            factory: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                factory = getattr(factory, part)
            model = factory(**record.arguments)
        except Exception as error:  # the user's code may raise anything
            hint = _hidden(module_name, paths.root) or "its module is looked for beside the study file too"
            raise UnknownModelError(
                f"model {record.name!r}: factory {record.factory!r}: {type(error).__name__}: {first_line(error)}; "
                f"correct `factory` or `arguments`; {hint}"
            ) from error
    if not isinstance(model, nn.Module):
        raise UnknownModelError(f"model {record.name!r}: factory {record.factory!r} gives no torch module")
    return model


def _require_own_module(name: str, folder: Path) -> None:
    """Refuse a module of the study folder that another account can write. Raises UntrustedFile."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name.partition(".")[0])
        if spec and spec.origin and Path(spec.origin).is_relative_to(folder):
            require_own(Path(spec.origin), folder)


def _hidden(name: str, folder: Path) -> str:
    """That a module beside the study file has the name of one that Python finds first; empty where it has not."""
    top = name.partition(".")[0]
    own = [path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()]
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        if own and spec and spec.origin != str(own[0]):
            return f"{own[0]} is hidden by {spec.origin}: rename it"
    return ""


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the study folder's modules be imported for a while, after everything installed, and leave no bytecode there.

    Raises:
        UntrustedFile: another account can write to that folder.
    """
    require_own(folder, folder)
    bytecode = sys.dont_write_bytecode
    sys.path.append(str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))


def _check_outputs(model: nn.Module, record: ModelRecord) -> None:
    """Refuse a factory's model that gives other than one output per class; what runs on a GPU alone is not looked at.

    Raises:
        WeightsError: it says how many there are.
    """
    found: tuple[int, ...] = ()
    with torch.no_grad(), suppress(Exception):  # the user's code may raise anything, and workers report it
        found = tuple(model.eval()(torch.zeros(1, *record.input_size)).shape)
    if found and found != (1, record.num_classes):
        raise WeightsError(
            f"model {record.name!r}: factory {record.factory!r} gives outputs of shape {list(found)} for one image, and "
            f"{record.num_classes} classes need [1, {record.num_classes}]; correct `factory`, `arguments` or `num_classes`"
        )


def _outline(record: ModelRecord, paths: StudyPaths) -> nn.Module:
    """The architecture without the cost of its weights, where timm makes it and can do without them."""
    if record.timm:
        with suppress(UnknownModelError), torch.device("meta"):
            return initialised(record, paths, seed=0)
    return initialised(record, paths, seed=0)


def _load(model: nn.Module, content: Mapping[Any, Any], checkpoint: Path, name: str, *, assign: bool = False) -> str:
    """Load the state dict in a checkpoint that fits. Returns what was chosen in it, empty for a plain one.

    A model that translates names itself is asked first, since its own names then say nothing of those in the file.
    """
    if any(module._load_state_dict_pre_hooks for module in model.modules()):
        for state in state_dicts(content):
            with suppress(RuntimeError, KeyError, AttributeError):
                model.load_state_dict(state, strict=True, assign=assign)
                return ""
    fitting = fitting_state(content, model.state_dict(), checkpoint, name)
    try:
        model.load_state_dict(fitting.state, strict=True, assign=assign)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"model {name!r}: {checkpoint} does not fit: {first_line(error)}; correct `checkpoint`, `timm`, `factory` or "
            "`num_classes`"
        ) from error
    return fitting.how


def _without_statistics(model: nn.Module) -> int:
    """Number of batch norms that normalise with the batch also in eval mode."""
    return sum(isinstance(module, _BatchNorm) and module.running_mean is None for module in model.modules())


def _timm_with_features(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = model.forward_features(images)
    features = model.forward_head(hidden, pre_logits=True)
    return model.forward_head(hidden), features.flatten(1)


def _hooked_with_features(model: nn.Module, last: nn.Linear, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    return logits, seen[-1].flatten(1)
