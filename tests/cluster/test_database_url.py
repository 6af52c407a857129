"""A database whose password comes from the environment: search and readers connect to the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from clusterbench import PASSWORD

from analysis.errors import InputError
from analysis.runs import study_source
from analysis.runs.study_url import study_url
from search.study.record import StudyRecord


def test_search_and_readers_connect_to_the_same_database(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMA_STUDY_URL", raising=False)
    monkeypatch.setenv("PW", PASSWORD)
    monkeypatch.setenv("WHOLE", database)
    port: Any = sa.make_url(database).port
    for number, study in enumerate((f"postgresql://ama:${{PW}}@127.0.0.1:{port}/ama", "${WHOLE}")):
        record = StudyRecord.create(study_url(study, tmp_path), f"url-{number}", ["maximize", "minimize"])
        record.set_attrs({"mark": number})
        record.close()
        (tmp_path / "experiment.yaml").write_text(
            yaml.safe_dump({"name": f"url-{number}", "storage": {"study": study}})
        )
        found = study_source.locate(tmp_path)
        assert study_source.read(found).attrs["mark"] == number
        assert PASSWORD not in found.label
    assert study_source.read(study_source.locate(f"{database}#url-0")).attrs["mark"] == 0
    monkeypatch.setenv("PW", f"{PASSWORD}x")
    (tmp_path / "experiment.yaml").write_text(
        yaml.safe_dump(
            {"name": "url-0", "storage": {"study": f"postgresql://ama:${{PW}}@127.0.0.1:{port}/ama"}}
        )
    )
    with pytest.raises(InputError, match="cannot be read") as error:
        study_source.read(study_source.locate(tmp_path))
    assert "word" not in str(error.value).replace("password", "")
