"""Wrong input to plan: one line that says which, where and what to do, exit code 2, and nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import main
from tests.cli import refused, succeeds
from tests.planning.support import DIGITS, FOUR, model_table, save_resnet, write_study

FOLDER = '[study]\nname = "x"\n[dataset]\nkind = "imagefolder"\n'
Said = Callable[..., str]
PREDICTED = '[study]\nname = "x"\n[dataset]\nkind = "predictions"\npath = "p"\n'


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """What `kt-study plan ARGUMENTS` says in `tmp_path`, here in this process, when it ends with 2 as it must."""

    def say(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["kt-study", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        streams = capsys.readouterr()
        assert (ended.value.code, streams.out) == (2, "")
        return streams.err.rstrip("\n")

    return say


def _files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("parts", "arguments", "told"),
    [
        ((FOLDER, 'val = "nowhere"\n'), (), "nowhere: no such folder; fix [dataset] val"),
        (
            (DIGITS, *FOUR, '[[model]]\nname = "a"\ntimm = "resnet51"\n'),
            (),
            "resnet51: not among the 1321 ImageNet-1k tags of timm 1.0.31; did you mean resnet5",
        ),
        (
            (DIGITS, *FOUR, '[[model]]\nname = "a"\ntimm = "resnet50.a99_in1k"\n'),
            (),
            "resnet50 has no such ImageNet-1k tag",
        ),
        (
            (DIGITS, *FOUR, model_table("a", random_weights=None, checkpoint="a.pth")),
            (),
            "[[model]] 'a': no checkpoint at ",
        ),
        (
            (DIGITS, *FOUR),
            ("--pairs", "13"),
            "13 transfer pairs cannot be drawn: 4 teachers x 4 students are 12 pairs of different models",
        ),
        ((DIGITS, *FOUR), ("--complementarity-pairs", "13"), "13 pairs cannot cover exactly 4 models; ask for 2 to 12"),
        (
            (DIGITS, *FOUR, "[complementarity]\npairs = 1\nmodels = 4\n"),
            (),
            "1 pairs cannot cover exactly 4 models; ask for 2 to 12",
        ),
        ((DIGITS, *FOUR, "[complementarity]\nmodels = 5\n"), (), "5 models cannot be covered: the universe has 4"),
        ((DIGITS, *FOUR, '[transfer]\nobjectives = ["kl", "kl_pd"]\n'), (), "did you mean 'kl_dp'?"),
        ((DIGITS, *FOUR, '[transfer]\nobjectives = ["kl_dp"]\nflips = "positive"\n'), (), "flips = 'positive'"),
        (
            (DIGITS, *FOUR, "[transfer]\nwarmup_epochs = 9\nepochs = 3\n"),
            (),
            "warmup_epochs = 9 is more than epochs = 3",
        ),
        (
            (DIGITS, *FOUR, '[transfer]\nobjectives = ["kl", "cd"]\nmulti_teacher = ["parallel"]\n'),
            (),
            "parallel teachers need a data partition",
        ),
        (
            (DIGITS, *FOUR, '[transfer]\nmulti_teacher = ["soup"]\nteachers_per_student = 4\n'),
            (),
            "teachers_per_student = 4, but 'm0' has only 3 teachers",
        ),
        (
            (DIGITS, *FOUR, '[transfer]\nteachers = ["n*"]\n'),
            (),
            "[transfer] teachers: 'n*' matches none of the study's 4",
        ),
        ((DIGITS, FOUR[0]), (), "the study has 1 model and a pair needs 2"),
        ((DIGITS, FOUR[0], FOUR[0].replace('"m0"', '"twin"')), (), "models 'm0' and 'twin' are the same"),
        (
            (DIGITS, *FOUR, model_table("big", num_classes=1000)),
            (),
            "model 'big' has 1000 outputs, data set 'digits' 10 classes; leave it out",
        ),
        (
            (DIGITS, *FOUR),
            ("--preset", "paper-1pct"),
            "paper-1pct: no such preset; did you mean 'paper-10pct'? (there are paper-10pct",
        ),
        ((DIGITS, *FOUR), ("--preset", "paper-full"), "preset paper-full is about imagenet-1k (1000 classes"),
        (
            (DIGITS, *FOUR),
            ("--preset", "paper-full", "--pairs", "3"),
            "--pairs and --preset paper-full: a preset has its",
        ),
        ((DIGITS, *FOUR), ("--grid", "lr=fast"), "--grid lr=fast: expected `float`"),
        ((DIGITS, *FOUR), ("--grid", "batchnorm=off"), "--grid batchnorm=off: invalid enum value 'off'"),
        ((DIGITS, *FOUR), ("--grid", "batchnorm=frozn"), "'frozn'; did you mean 'frozen'? (it may be train, frozen)"),
        ((DIGITS, *FOUR), ("--grid", "lr=1,inf"), "--grid lr=1,inf: inf is no finite number"),
        (
            (DIGITS, '[models]\nuniverse = "digits-zoo"\n', model_table("digits/gmlp")),
            (),
            "[[model]] 'digits/gmlp' has the name of one of the zoo's models; give it another",
        ),
        ((DIGITS, *FOUR), ("--grid", "multi_teacher=soup"), "give KEY=V1,V2 with a key of [transfer]"),
        ((DIGITS, *FOUR, '[fine_tuning]\nscope = "body"\n'), (), "give [fine_tuning.dataset]"),
        ((DIGITS, *FOUR, '[models]\nuniverse = "timm"\n'), (), "has 1000 outputs, data set 'digits' 10 classes"),
        ((FOLDER, 'val = "v"\n', '[models]\nuniverse = "digits-zoo"\n'), (), "goes with [dataset] kind = 'digits'"),
        ((PREDICTED, "[transfer]\npairs = 2\n"), (), "no transfers can be planned: predictions made elsewhere have no"),
        ((PREDICTED,), ("--pairs", "1"), "predictions made elsewhere have no models to train"),
        ((PREDICTED, *FOUR), (), "[dataset] kind = 'predictions' brings its own models"),
        ((FOLDER, 'val = "v"\n', *FOUR), ("--pairs", "1"), "has no training samples (give [dataset] train)"),
        ((DIGITS, 'class_embeddings = "none.npy"\n', *FOUR), (), "none.npy: no such file"),
        ((DIGITS, 'clip_weights = "none.pt"\n', *FOUR), (), "none.pt: no such file; fix [dataset] clip_weights in"),
        ((DIGITS, 'wordnet = "study.toml"\n', *FOUR), (), "study.toml: no such folder; fix [dataset] wordnet in the"),
        (
            (DIGITS, 'class_names = "study.toml"\n', *FOUR),
            (),
            "class_names is for kind = 'predictions'; 'digits' names",
        ),
        ((DIGITS, 'class_embeddings = "study.toml"\n', *FOUR), (), "study.toml: not a matrix in .npy format"),
        ((DIGITS, 'class_embeddings = "nine.npy"\n', *FOUR), (), "has shape [9, 4], and data set 'digits' 10 classes"),
    ],
)
def test_one_line_and_nothing_written(
    tmp_path: Path, said: Said, parts: tuple[str, ...], arguments: tuple[str, ...], told: str
) -> None:
    write_study(tmp_path, *parts)
    for number in range(10):
        image = tmp_path / "v" / f"class{number}" / "1.png"
        image.parent.mkdir(parents=True)
        image.write_bytes(b"x")
    (tmp_path / "p").mkdir()
    for predicted in (0, 1):
        (tmp_path / "p" / f"{predicted}.csv").write_text(f"sample_index,predicted,label\n0,{predicted},1\n")
    np.save(tmp_path / "nine.npy", np.zeros((9, 4)))
    before = _files(tmp_path)
    line = said(*arguments)
    assert line.startswith("kt-study: ")
    assert "\n" not in line
    assert told in line
    assert _files(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"timm": "test_vit"},
            "model 'own': {folder}/good.safetensors does not fit: 80 missing (cls_token, pos_embed, patch_embed.proj.weig",
        ),
        (
            {"checkpoint": "seven.safetensors"},
            "does not fit: 2 of another shape (fc.weight (7, 96) for (10, 96), fc.bias (7,) for (10,)); correct `che",
        ),
        ({"checkpoint": "junk.pth"}, "{folder}/junk.pth: not a readable checkpoint (unpack"),
        ({"checkpoint": "cut.pth"}, "{folder}/cut.pth: not a readable checkpoint ("),
        (
            {"timm": None, "factory": "no_such_module:net"},
            "model 'own': factory 'no_such_module:net': ModuleNotFoundErr",
        ),
        ({"timm": None, "factory": "my_nets:no_net"}, "has no attribute 'no_net'; correct `factory` or `arguments`"),
        ({"timm": None, "factory": "my_nets:small"}, "model 'own': {folder}/good.safetensors does not fit: 2 missing"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--dry-run",)], ids=" ".join)
def test_own_models_are_built_before_anything_is_planned(
    tmp_path: Path, said: Said, changes: dict[str, str], told: str, arguments: tuple[str, ...]
) -> None:
    save_resnet(tmp_path / "good.safetensors")
    save_resnet(tmp_path / "seven.safetensors", classes=7)
    (tmp_path / "junk.pth").write_text("junk")
    (tmp_path / "cut.pth").write_bytes(save_resnet(tmp_path / "good.pth").read_bytes()[:5000])
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef small():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    own = {"random_weights": None, "checkpoint": "good.safetensors", **changes}
    write_study(tmp_path, DIGITS, *FOUR, model_table("own", **own))
    before = _files(tmp_path)
    line = said(*arguments)
    assert told.format(folder=tmp_path) in line
    assert "\n" not in line
    assert _files(tmp_path) == before


def test_the_same_from_another_process(tmp_path: Path) -> None:
    write_study(tmp_path, FOLDER, 'val = "nowhere"\n')
    assert "nowhere: no such folder" in refused(tmp_path, "plan")
    write_study(tmp_path, DIGITS, *FOUR)
    assert "13 transfer pairs cannot be drawn" in refused(tmp_path, "plan", "--pairs", "13")
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_dry_run_writes_nothing_either(tmp_path: Path) -> None:
    checkpoint = save_resnet(tmp_path / "w.safetensors")
    write_study(tmp_path, DIGITS, *FOUR, model_table("own", random_weights=None, checkpoint=checkpoint.name))
    before = sorted(tmp_path.rglob("*"))
    succeeds(tmp_path, "plan", "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
