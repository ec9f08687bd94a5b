"""A specification is an identity: equal records give equal specs and digests, whatever they were made from."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kt_study.hashing import job_digest
from kt_study.records import LogitsSpec, TrainSpec, TransferSpec, as_spec
from kt_study.settings import Settings

_SETTINGS = st.builds(
    Settings,
    epochs=st.integers(1, 30),
    lr=st.sampled_from([1e-4, 1e-3, 1, 0.5]),
    temperature=st.sampled_from([1.0, 1, 4.0]),
    augment=st.sampled_from(["none", "crop_flip"]),
    channels_last=st.booleans(),
)


@given(settings=_SETTINGS, seed=st.integers(0, 3))
def test_a_spec_survives_the_database(settings: Settings, seed: int) -> None:
    spec = TransferSpec(dataset="d", student="s", teachers=("a", "b"), objective="kl", settings=settings, seed=seed)
    stored = json.loads(json.dumps(as_spec(spec)))
    back = msgspec.convert(stored, TransferSpec)
    assert as_spec(back) == stored
    assert job_digest("transfer", as_spec(back)) == job_digest("transfer", as_spec(spec))


@pytest.mark.parametrize(
    ("record", "left"),
    [
        (LogitsSpec(dataset="d", model="m", split="val", augment="".join(["no", "ne"])), {"split": "val"}),
        (
            LogitsSpec(dataset="d", model="m", split="train", view=0, crop_pct=float("0.5")),
            {"view": 0, "crop_pct": 0.5},
        ),
        (TrainSpec(dataset="d", split="zoo", start="m", lr=float("1e-3"), share=1), {"split": "zoo", "start": "m"}),
    ],
)
def test_equal_to_the_default_is_left_out_though_it_is_another_object(record: Any, left: dict[str, Any]) -> None:
    spec = as_spec(record)
    assert {name: spec[name] for name in left} == left
    assert not {"augment", "lr", "share", "loader", "features"} & set(spec)


def test_nested_settings_at_their_defaults_are_left_out_altogether() -> None:
    spec = TransferSpec(
        dataset="d", student="s", teachers=("t",), objective="kl", settings=Settings(lr=float("0.0001"))
    )
    assert "settings" not in as_spec(spec)
