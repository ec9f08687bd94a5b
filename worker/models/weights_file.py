"""Weights files that other programs wrote: reading them without running code, and finding the state dict that fits a model.

Training scripts nest the state dict among other things, and wrappers of the model put their own names before its names. Which
of these a file has is decided by the model: the names as they are come first, then the wrappings whose names and shapes fit.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from kt_study.errors import WeightsError

_EMA_NESTS = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
_NESTS = (*_EMA_NESTS, "state_dict", "model_state_dict", "model_state", "model", "module")
"""Where training scripts keep the state dict inside a checkpoint, the averaged weights first as timm does."""

_COMPILED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and checkpointing put before the names of a module, anywhere in the model."""
_EMA = ("ema", "ema_model", "model_ema", "averaged_model")
_WRAPPERS = (*_COMPILED, "module", "model", *_EMA)
"""What wrappers put before every name: the above, DistributedDataParallel, a training framework, an averaged copy."""

_BESIDE = ("n_averaged", "total_ops", "total_params")
"""Tensors that torch's AveragedModel and counters of operations add to a state dict."""

_DEPTH = 4  # of nesting
_SHOWN = 3  # names in a message

_BEGINNINGS = (
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer and not the weights; run `git lfs pull` in its repository"),
    (rb"\s*<(!doctype html|html|\?xml)", "an HTML or XML page and not the weights; download the file itself"),
    (rb'\s*[{\[]\s*["{}\[\]\w-]', "a JSON file and not the weights; give the file with the tensors"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|7z\xbc\xaf|Rar!", "a compressed file; unpack it"),
    (rb"\x89HDF", "an HDF5 file, such as Keras writes; convert it to safetensors"),
    (rb"\x93NUMPY", "a NumPy array; save a state_dict with torch.save or as safetensors"),
    (rb"GGUF", "a GGUF file; convert it to safetensors"),
    (rb"[\s\S]{257}ustar", "a tar archive; unpack it"),
)  # fmt: skip
"""How files begin that are no checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A state dict with the names of the model. `how` says what was chosen in the file; empty for a plain state dict."""

    state: dict[str, torch.Tensor]
    how: str = ""


def read_weights(file: Path, *, lazily: bool = False) -> Mapping[Any, Any]:
    """What a .safetensors file or a checkpoint of torch holds: a state dict, or more around it.

    Args:
        file: the file.
        lazily: leave the values in the file as far as its format lets us, for a look at names and shapes.

    Raises:
        WeightsError: no such file, not a checkpoint, not readable without running code, or no tensors in it.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such checkpoint; correct `checkpoint` in the study file")
    try:
        _require_checkpoint(file)
        content = _read(file, lazily=lazily)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise WeightsError(
            f"{file}: holds pickled objects{what} beside tensors, which could run code; save its state_dict() alone"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"{file}: not a readable checkpoint ({first_line(error)}); fetch it again") from error
    _require_state(content, file)
    return content  # type: ignore[no-any-return]


def fitting_state(content: Mapping[Any, Any], own: Mapping[str, torch.Tensor], file: Path, model: str) -> Fitting:
    """The state dict in a checkpoint whose names and shapes are those of a model.

    Args:
        content: as `read_weights` gives it.
        own: the model's own state dict; only its names, shapes and types are looked at.
        file, model: for messages.

    Raises:
        WeightsError: none fits, with the first few names that do not; two different ones fit; or weights that are not
            floating-point where the model's are.
    """
    found = list(_fits(content, own))
    if not found:
        raise WeightsError(
            f"model {model!r}: {file} does not fit: {_misfit(content, own)}; correct `checkpoint`, `timm`, `factory` or "
            "`num_classes`"
        )
    first = found[0]
    if not first.averaged and (other := next((fit for fit in found[1:] if _differ(first, fit)), None)):
        raise WeightsError(
            f"model {model!r}: {file} has two state dicts that fit, {first.where} and {other.where}; save the one that is "
            "meant alone"
        )
    state = first.state
    if quantised := _quantised(state, own):
        raise WeightsError(f"model {model!r}: {file}: {quantised}")
    beaten = any(not fit.averaged for fit in found) if first.averaged else False
    return Fitting(state=state, how=first.description(beaten=beaten))


def state_dicts(content: Mapping[Any, Any]) -> list[dict[str, torch.Tensor]]:
    """The state dicts in a checkpoint, the preferred one first, with their names as they are."""
    return [tensors for _, tensors in _state_dicts(content)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """One way to read a file that fits. `names` are the file's names by those of the model."""

    path: tuple[str, ...]  # keys that lead to the state dict
    prefix: str
    names: dict[str, str]
    tensors: dict[str, torch.Tensor]  # all of the state dict, by the file's names

    @property
    def averaged(self) -> bool:
        return any(key in _EMA_NESTS for key in self.path) or any(part in _EMA for part in self.prefix.split("."))

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {name: self.tensors[stored] for name, stored in self.names.items()}

    @property
    def where(self) -> str:
        under = [f"under {'.'.join(self.path)!r}"] if self.path else []
        return " ".join([*under, *([f"behind {self.prefix!r}"] if self.prefix else [])]) or "without a prefix"

    def description(self, *, beaten: bool) -> str:
        """What was chosen, in words; empty where the file is the state dict and nothing else."""
        others = [name for name in self.tensors if name not in self.names.values()]
        inner = [part for part in _WRAPPERS if any(part in _removed(*pair, self.prefix) for pair in self.names.items())]
        parts = [
            f"the state dict under {'.'.join(self.path)!r}" if self.path else "",
            f"the names behind {self.prefix!r}" if self.prefix else "",
            "names without " + ", ".join(repr(f"{part}.") for part in inner) if inner else "",
            "the averaged weights, not the plain ones" if beaten else "",
            f"without {len(others)} other tensor{'s' if len(others) > 1 else ''} ({_some(others)})" if others else "",
        ]
        return ", ".join(filter(None, parts))


def _removed(name: str, stored: str, prefix: str) -> list[str]:
    """The parts of a stored name, behind the prefix, that the model's name lacks."""
    parts = stored.removeprefix(prefix).split(".")
    for part in name.split("."):
        if part in parts:
            parts.remove(part)
    return parts


def _fits(content: Mapping[Any, Any], own: Mapping[str, torch.Tensor]) -> Iterator[_Fit]:
    """Every way to read a file that fits, the preferred one first."""
    for path, tensors in _state_dicts(content):
        for prefix, names in _readings(tensors):
            kept = {name: stored for name, stored in names.items() if name in own or name.split(".")[-1] not in _BESIDE}
            if _same_shapes({name: tensors[stored] for name, stored in kept.items()}, own):
                yield _Fit(path=path, prefix=prefix, names=kept, tensors=tensors)


def _state_dicts(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, torch.Tensor]]]:
    """The mappings of names to tensors where training scripts keep them, with the keys that lead there."""
    for nest in _NESTS if len(path) < _DEPTH else ():
        if isinstance(content.get(nest), Mapping):
            yield from _state_dicts(content[nest], (*path, nest))
    if tensors := _tensors(content):
        yield path, tensors


def _tensors(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _readings(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, str]]]:
    """Names without the wrappers' parts: a prefix, and the names behind it with those that are stored.

    First the names as they are, then without what may stand before a part of the model, too.
    """
    for dropped in ((), _COMPILED, (*_COMPILED, "module")):
        short = {".".join(part for part in name.split(".") if part not in dropped): name for name in tensors}
        if len(short) < len(tensors) or (dropped and short.keys() == tensors.keys()):
            continue
        for prefix in sorted({prefix for name in short for prefix in _prefixes(name)}, key=_preference):
            yield (
                prefix,
                {name.removeprefix(prefix): stored for name, stored in short.items() if name.startswith(prefix)},
            )


def _prefixes(name: str) -> Iterator[str]:
    """What wrappers may have put before a name: nothing, and each of its first parts as long as they are wrappers'."""
    yield ""
    parts = list(itertools.takewhile(_WRAPPERS.__contains__, name.split(".")[:-1]))
    yield from (".".join(parts[:count]) + "." for count in range(1, 1 + len(parts)))


def _preference(prefix: str) -> tuple[bool, bool, int, str]:
    """Names as they are first, then averaged weights, then the shortest prefix."""
    return bool(prefix), not any(part in _EMA for part in prefix.split(".")), len(prefix), prefix


def _same_shapes(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> bool:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    return not missing and all(name in own and state[name].shape == own[name].shape for name in state)


def _differ(one: _Fit, other: _Fit) -> bool:
    return any(not torch.equal(one.state[name], value) for name, value in other.state.items() if name in one.state)


def _quantised(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """That weights are integers where the model has floating-point numbers; empty where none are."""
    wrong = [
        name
        for name, value in state.items()
        if name in own
        and own[name].dtype.is_floating_point
        and (value.is_quantized or not value.dtype.is_floating_point)
    ]
    if not wrong:
        return ""
    kind = str(state[wrong[0]].dtype).removeprefix("torch.")
    return f"{len(wrong)} tensors are {kind} ({_some(wrong)}) where the model has floating-point numbers; save those"


def _misfit(content: Mapping[Any, Any], own: Mapping[str, torch.Tensor]) -> str:
    """Why no reading fits, told of the one with the most names in common."""
    readings = [
        {name: tensors[stored] for name, stored in names.items()}
        for _, tensors in _state_dicts(content)
        for _, names in _readings(tensors)
    ]
    state = max(readings, key=lambda state: (len(own.keys() & state.keys()), -len(state)), default={})
    if quantised := _quantised(state, own):
        return quantised
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    parts = [("missing", missing), ("unexpected", foreign), ("of another shape", shapes)]
    told = [f"{len(names)} {what} ({_some(names)})" for what, names in parts if names]
    return "; ".join([*told, *_unknown_wrapping(content, state, own)])


def _unknown_wrapping(
    content: Mapping[Any, Any], state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> list[str]:
    """Where in a file weights are that would fit, but that no known program keeps there."""
    for key, value in content.items():
        if isinstance(value, Mapping) and _same_shapes(_tensors(value), own):
            return [f"the entry {key!r} would fit, save it alone"]
    first = next(iter(own), "")
    for prefix in sorted({name.removesuffix(first) for name in state if name.endswith(f".{first}")}):
        if _same_shapes({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}, own):
            return [f"the names behind {prefix!r} would fit, save the state_dict() of that part alone"]
    return []


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _require_state(content: Any, file: Path) -> None:
    """Refuse what has no tensors where a state dict may be. Raises WeightsError, which names what is there."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file}: holds a {type(content).__name__} and not a state dict; save a state_dict()")
    if any(True for _ in _state_dicts(content)):
        return
    holders = [str(key) for key, value in content.items() if isinstance(value, Mapping) and _tensors(value)]
    keys = _some([str(key) for key in content]) or "none"
    if holders:
        raise WeightsError(
            f"{file}: no state dict where training scripts keep it; tensors are under {', '.join(map(repr, holders))} (keys: "
            f"{keys}); save that state dict alone"
        )
    raise WeightsError(f"{file}: no tensors in it (keys: {keys}); save a state_dict")


def _require_checkpoint(file: Path) -> None:
    """Refuse what is plainly something else, or has another format than its name says. Raises WeightsError."""
    with file.open("rb") as stream:
        beginning = stream.read(512)
    if not beginning:
        raise WeightsError(f"{file}: an empty file; fetch it again")
    named_safetensors = file.suffix.lower() == ".safetensors"
    if _is_safetensors(beginning, file.stat().st_size):
        if not named_safetensors:
            raise WeightsError(f"{file}: a safetensors file under another name; rename it to {file.stem}.safetensors")
        return
    for pattern, what in _BEGINNINGS:
        if re.match(pattern, beginning, re.IGNORECASE):
            raise WeightsError(f"{file}: {what}")
    if _is_archive(file):
        _require_torchs(file)
    if named_safetensors and (_is_archive(file) or beginning.startswith(b"\x80")):
        raise WeightsError(f"{file}: a checkpoint of torch under another name; rename it to {file.stem}.pth")


def _is_safetensors(beginning: bytes, size: int) -> bool:
    """Whether a file begins with the length of a header, and a header in JSON."""
    return len(beginning) > 8 and 0 < int.from_bytes(beginning[:8], "little") <= size - 8 and beginning[8:9] == b"{"


def _require_torchs(file: Path) -> None:
    """Refuse a zip archive that torch.save did not write. Raises WeightsError, or zipfile.BadZipFile for a damaged one."""
    with zipfile.ZipFile(file) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names:
        raise WeightsError(f"{file}: a TorchScript archive, which holds code; save the model's state_dict()")
    if "data.pkl" not in names:
        what = "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive of other files"
        raise WeightsError(f"{file}: {what}; save a state_dict with torch.save or as safetensors")


def _read(file: Path, *, lazily: bool) -> Any:
    if file.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    archived = _is_archive(file)
    if archived:
        _require_plausible(file)
    mapped = lazily and archived  # torch cannot map the format from before 1.6
    with torch.serialization.safe_globals(_plain_values()):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _plain_values() -> list[Any]:
    """Types of plain values that training scripts keep beside the weights, their options and scores; making one runs no code."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [np.dtype, *{type(np.dtype(name)) for name in "?bhilqBHILQefd"}]
    scalars = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
    ]
    return [argparse.Namespace, *kinds, *scalars, *paths]


def _is_archive(file: Path) -> bool:
    """Whether torch would read it as a zip archive, by its first bytes; or zipfile, by its last."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04" or zipfile.is_zipfile(file)


def _require_plausible(file: Path) -> None:
    """Refuse an archive before its members fill the memory. torch.save stores them as they are, so that they fit into the
    file; torch makes room for what the archive's directory says, and reads no more than that.

    Raises:
        WeightsError: they inflate to more than twice the file.
        zipfile.BadZipFile: the directory is incomplete.
    """
    with zipfile.ZipFile(file) as archive:
        inflated = sum(member.file_size for member in archive.infolist())
    size = file.stat().st_size
    if inflated > 2 * size + 2**20:
        raise WeightsError(
            f"{file}: a file of {size / 1e6:,.1f} MB whose members inflate to {inflated / 1e6:,.1f} MB, as torch.save "
            "writes none; fetch it again, or save its state_dict() with torch.save"
        )
