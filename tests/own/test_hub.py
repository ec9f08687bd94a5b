"""Models of the Hugging Face hub, without the hub."""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
import pytest

from kt_study.errors import WeightsError
from orchestrator.planning.hub_models import described


class Heard(logging.Handler):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_what_the_hubs_client_logs_of_its_tries_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(*_: object, **__: object) -> str:
        log.warning("Retrying in 8s [Retry 4/5].")
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    heard = Heard()
    log.addHandler(heard)
    try:
        with pytest.raises(WeightsError, match=r"\[\[model\]\] 'a': foo/bar cannot be had .*; fetch it where there is"):
            described("hf-hub:foo/bar", "a", tmp_path)
        assert heard.lines == []
        log.warning("said at another time")
        assert heard.lines == ["said at another time"]
    finally:
        log.removeHandler(heard)
