"""The study file: defaults, and one line for every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kt_study.errors import StudyFileError
from kt_study.study import read_study
from orchestrator.planning.templates import digits_study, imagenet_study

MINIMAL = '[study]\nname = "x"\n[dataset]\nkind = "digits"\n'
OWN = MINIMAL + '[[model]]\nname = "a"\ntimm = "resnet18"\n'


def _read(folder: Path, text: str):  # type: ignore[no-untyped-def]
    path = folder / "study.toml"
    path.write_text(text)
    return read_study(path)


def test_a_minimal_file_has_the_papers_defaults(tmp_path: Path) -> None:
    study = _read(tmp_path, MINIMAL)
    assert (study.transfer.epochs, study.transfer.momentum, study.transfer.batchnorm) == (20, 0.9, "train")
    assert study.transfer.objectives == ["kl", "kl_dp"]
    assert study.transfer.lr is None  # left to the objective


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'study' is missing"),
        ("[study\n", "not valid TOML"),
        ('[study]\nname = "x"\n', "'dataset' is missing"),
        ('[study]\nnam = "x"\n[dataset]\nkind = "digits"\n', "[study]: unknown key 'nam'; did you mean 'name'?"),
        (MINIMAL + "[transfer]\nepoch = 3\n", "[transfer]: unknown key 'epoch'; did you mean 'epochs'?"),
        (MINIMAL + '[transfer]\nepochs = "3"\n', "[transfer] epochs: expected `int`, got `str`"),
        (MINIMAL + "[transfer]\nepochs = 0\n", "[transfer] epochs: expected `int` >= 1"),
        (MINIMAL + '[transfer]\nbatchnorm = "off"\n', "[transfer] batchnorm: invalid enum value 'off'"),
        (MINIMAL + "[transfer]\nlr = inf\n", "[transfer] lr: inf is not a finite number"),
        (MINIMAL + "[transfer]\nweight_decay = inf\n", "[transfer] weight_decay: inf is not a finite number"),
        (MINIMAL + "[transfer]\ntemperature = inf\n", "[transfer] temperature: inf is not a finite number"),
        (MINIMAL + "[transfer]\nlr = nan\n", "[transfer] lr: expected `float` >= 0.0"),
        (OWN + "mean = [nan, 0.5, 0.5]\n", "[[model]] mean: nan is not a finite number"),
        (OWN + "arguments = { depth = [1, inf] }\n", "[[model]] arguments depth: inf is not a finite number"),
        (MINIMAL + f"[transfer]\nviews = {2**63}\n", "[transfer] views: a whole number of more than 64 bits"),
        (MINIMAL + "[transfer]\nepochs = 99999999999999999999\n", "[transfer] epochs: expected `int` <= 1000000"),
        (
            MINIMAL + '[transfer]\naugment = "flips"\n',
            "augment: invalid enum value 'flips'; did you mean 'flip'? (it may be none, flip, crop_flip, authors)",
        ),
        (MINIMAL + '[transfer]\nkeep = "al"\n', "'al'; did you mean 'all'? (it may be none, best, all)"),
        (MINIMAL + '[models]\nuniverse = "zoo"\n', "'zoo' (it may be timm, listed, digits-zoo)"),
        (MINIMAL + '[transfer]\nmulti_teacher = ["soups"]\n', "did you mean 'soup'? (it may be sequential, parallel,"),
        (MINIMAL + '[notify]\non = ["finish"]\n', "[notify] on: invalid enum value 'finish'; did you mean 'finished'?"),
        (
            OWN + 'family = "cnm"\n',
            "[[model]] family: invalid enum value 'cnm'; did you mean 'cnn'? (it may be cnn, tr",
        ),
        (MINIMAL + '[complementarity]\npairs = "every"\n', "'every' (it may be a whole number, all)"),
        (MINIMAL + 'labels = "yes"\n', "[dataset] labels: invalid enum value 'yes' (it may be true, false, val)"),
        (MINIMAL.replace('"x"', '"ä/ü"'), "[study] name: expected `str` of letters, digits, . _ - only"),
        (OWN + "std = [0, 0, 0]\n", "[[model]] std: expected `float` > 0.0"),
        (OWN + "std = [1, 1]\ninput_size = [3, 8, 8]\n", "[[model]] 'a': std has 2 values for 3 channels"),
        (OWN + "input_size = [3, 0, 32]\n", "[[model]] input_size: expected `int` >= 1"),
        (MINIMAL + "[transfer]\nstudents = []\n", "[transfer] students: expected `array` of length >= 1"),
        (MINIMAL + "[transfer]\nteachers = []\n", "[transfer] teachers: expected `array` of length >= 1"),
        (MINIMAL + '[notify]\nwebhook = "foo"\n', "[notify] webhook: no http:// or https:// address"),
        (MINIMAL + "[tranfer]\n", "unknown key 'tranfer'; did you mean 'transfer'?"),
        (MINIMAL + '[[model]]\nname = "a"\n', "[[model]] 'a' needs exactly one of `timm` and `factory`"),
        (MINIMAL + '[[model]]\nname = "a"\nfactory = "mine"\ninput_size = [3, 8, 8]\n', "is not `module:callable`"),
        (MINIMAL + '[[model]]\nname = "a"\nfactory = "m:f"\n', "a factory needs input_size"),
        (MINIMAL + 2 * '[[model]]\nname = "a"\ntimm = "resnet18"\n', "[[model]] 'a': duplicate model name"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        _read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "study.toml"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="kt-study init"):
        read_study(tmp_path / "study.toml")


def test_both_templates_are_valid(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / 'a "quoted" folder' / split).mkdir(parents=True)
    assert _read(tmp_path, digits_study()).study.name == "digits"
    paper = _read(tmp_path, imagenet_study(tmp_path / 'a "quoted" folder'))
    assert (paper.complementarity.pairs, paper.complementarity.models, paper.transfer.pairs) == (466, 301, 400)
    assert Path(paper.dataset.train).is_dir()


def test_the_reference_page_is_as_the_records_say() -> None:
    from docs.generate.study_page import PAGE, page

    assert PAGE.read_text() == page()
    assert "| `epochs` | integer | `20` | Passes over the transfer set. |" in page()
