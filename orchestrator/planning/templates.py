"""The study files that `kt-study init` writes."""

from __future__ import annotations

from pathlib import Path

from kt_study.errors import DataError

_DIGITS = """\
# A kt-study study. docs/study-file.md explains every key; command-line options override this file.

[study]
name = "digits"                # planning the same name again adds only new jobs
seed = 0                       # of pairs, views and training order

[dataset]
kind = "digits"                # the 1,797 handwritten digits of scikit-learn; nothing to download

[models]
universe = "digits-zoo"        # twelve small classifiers that the study trains first

[complementarity]
pairs = 132                    # every ordered pair of twelve models
models = 12

[transfer]
pairs = 24                     # sampled from students x teachers, per objective
students = ["*"]               # globs over the models
teachers = ["*"]
objectives = ["labels", "kl", "kl_dp"]  # labels: the same training without a teacher, to compare with
epochs = 10
batch_size = 32
lr = 1e-3
views = 1
augment = "none"               # a mirrored digit is another digit
"""

_IMAGENET = """\
# The study of the paper (arXiv 2310.17653). docs/study-file.md explains every key; command-line options override this file.

[study]
name = "paper"                 # planning the same name again adds only new jobs
seed = 0                       # of pairs, subsets, views and training order

[dataset]
kind = "imagefolder"
train = {train}
val = {val}
train_per_class = 130          # Section A: a stratified tenth of ImageNet

[models]
universe = "timm"              # every ImageNet-1k tag of timm
# include = ["resnet*"]        # globs; exclude, families, params_max, top1_min, gmacs_max, licenses likewise

[complementarity]
pairs = 466                    # Section 3
models = 301

[transfer]
pairs = 400                    # Section 5.1, per objective; `plan --preset paper-10pct` uses the paper's own list
objectives = ["kl", "kl_dp"]
epochs = 20
batch_size = 128
momentum = 0.9
weight_decay = 1e-3
temperature = 1.0
views = 2                      # distinct views of a training sample, cycled over epochs
augment = "crop_flip"          # none | flip | crop_flip | authors
batchnorm = "train"            # train | frozen
"""


def digits_study() -> str:
    """The embedded default."""
    return _DIGITS


def imagenet_study(folder: Path) -> str:
    """The paper's study on the ImageNet folder that has train/ and val/. Raises DataError when it has not."""
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise DataError(f"{folder / split}: no such folder; --imagenet wants the folder that has train/ and val/")
    folder = folder.resolve()
    return _IMAGENET.format(train=_toml(folder / "train"), val=_toml(folder / "val"))


def _toml(path: Path) -> str:
    """A path as a TOML string."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
