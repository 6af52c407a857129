"""A whole run against an object store, PostgreSQL and two nodes, and what it leaves nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import optuna
import pytest
from clusterbench import ACCESS_KEY, PASSWORD, SECRET_KEY, Place


@pytest.fixture(scope="module")
def run(place: Place, cluster: Any) -> str:
    """URI of a finished search of two trials."""
    uri = place.bucket("first")
    ended = place.ama("search", "tiny.yaml", "--address", cluster.address, "--out", uri)
    assert ended.code == 0, ended.output
    assert "all trials used" in ended.output and f"run: {uri}" in ended.output
    return uri


def study(place: Place) -> optuna.Study:
    url = place.env["AMA_STUDY_URL"].replace("postgresql:", "postgresql+psycopg:")
    return optuna.load_study(study_name="tiny", storage=url)


def test_artefacts_and_checkpoints_are_in_the_store(run: str, place: Place) -> None:
    names = {name.removeprefix("runs/first/") for name in place.objects("first")}
    assert {"experiment.yaml", "teacher.safetensors", "teacher.json", "costs.json"} <= names
    found = study(place)
    rows = [row for row in found.trials if "refused" not in row.user_attrs]
    assert len(rows) == 2 and {row.state.name for row in rows} == {"COMPLETE"}
    for row in rows:
        assert f"{row.user_attrs['checkpoint']}/distiller.pt" in names
    front = {str(row.number) for row in found.best_trials}
    assert set(found.user_attrs["measured"]) == front, "measured on the worker: the head has no CPU"
    assert found.user_attrs["experiment"]["run"]["dir"] == run


def test_a_laptop_reads_it(run: str, place: Place, tmp_path: Path) -> None:
    answer = place.ama("status", run, "--json")
    assert json.loads(answer.output)["trials"]["COMPLETE"] == 2
    ended = place.ama("pick", run, "--knee")
    assert ended.code == 0 and f"pick: {run}/pick.yaml" in ended.output, ended.output
    ended = place.ama("report", run, "--out", tmp_path / "report")
    assert ended.code == 0, ended.output
    page = (tmp_path / "report/index.html").read_text()
    assert f"ama retrain {run}/pick.yaml" in page and "ama-run-" not in page
    assert b"run: ." in place.objects("first")["runs/first/pick.yaml"]


def test_a_report_over_an_earlier_one_keeps_no_picture_that_it_does_not_draw(run: str, place: Place) -> None:
    folder = "runs/first/report/"
    for name in ("block-effects.png", "block-effects.svg", "mine.png"):
        place.s3.put_object(Bucket="first", Key=folder + name, Body=b"earlier")
    ended = place.ama("report", run)
    assert ended.code == 0, ended.output
    pictures = {name.removeprefix(folder) for name in place.objects("first") if name.startswith(folder)}
    assert "index.html" in pictures and "mine.png" in pictures
    assert not {"block-effects.png", "block-effects.svg"} & pictures, "two trials are too few for it"


def test_a_second_run_is_refused_and_a_finished_one_does_nothing(
    run: str, place: Place, cluster: Any
) -> None:
    arguments = ("search", "tiny.yaml", "--address", cluster.address, "--out", run)
    ended = place.ama(*arguments)
    assert ended.code == 2 and f"run.dir: {run} already holds a run" in ended.output
    ended = place.ama(*arguments, "--resume")
    assert ended.code == 0 and "all 2 trials are done already" in ended.output


def test_an_object_store_needs_a_database(place: Place) -> None:
    for key, words in (
        ("", "expected a database URL"),
        ("sqlite:///s3://first/study.db", "PostgreSQL|postgresql"),
    ):
        ended = place.ama("search", "tiny.yaml", "--out", "s3://first/second", AMA_STUDY_URL=key)
        assert ended.code == 2 and any(word in ended.output for word in words.split("|")), ended.output
        assert "storage.study" in ended.output or "AMA_STUDY_URL" in ended.output
        assert "Traceback" not in ended.output


@pytest.mark.faults
def test_retrained_and_resumed_after_a_copy_to_another_bucket(run: str, place: Place, cluster: Any) -> None:
    place.ama("pick", run, "--top", 1)
    copy = place.bucket("second")
    for name, content in place.objects("first").items():
        place.s3.put_object(Bucket="second", Key=name, Body=content)
    before = {row.number: row.datetime_complete for row in study(place).trials}
    ended = place.ama(
        "search", "tiny.yaml", "--trials", 4, "--address", cluster.address, "--out", copy, "--resume"
    )
    assert ended.code == 0 and "all trials used" in ended.output, ended.output
    rows = [row for row in study(place).trials if "refused" not in row.user_attrs]
    assert len(rows) == 4 and len({str(row.params) for row in rows}) == 4
    assert {
        row.number: row.datetime_complete for row in rows if row.number in before
    }.items() <= before.items()

    retrain = ("retrain", f"{copy}/pick.yaml", "--seeds", 1, "--epochs", 1, "--address", cluster.address)
    ended = place.ama(*retrain, "--json")
    assert ended.code == 0, ended.output
    models = {n for n in place.objects("second") if n.endswith("model.safetensors")}
    assert len(models) == 1
    written = place.objects("second")["runs/first/retrained/results.json"]
    again = place.ama(*retrain)
    assert again.code == 0 and place.objects("second")["runs/first/retrained/results.json"] == written
    laptop = place.ama("retrain", f"{copy}/pick.yaml", "--seeds", 2, "--epochs", 1)
    assert laptop.code == 0, laptop.output
    both = json.loads(place.objects("second")["runs/first/retrained/results.json"])
    assert len(both) == 2 and both[0] == json.loads(written)[0], "one is read back, one trained here"
    ended = place.ama("evaluate", f"s3://second/{next(iter(models)).rpartition('/')[0]}", "--json")
    assert ended.code == 0 and json.loads(ended.output)["accuracy"] == json.loads(written)[0]["test_accuracy"]
    ended = place.ama("report", copy)
    assert ended.code == 0 and "runs/first/report/index.html" in place.objects("second"), ended.output


def needles() -> Iterator[bytes]:
    for secret in (PASSWORD, SECRET_KEY, ACCESS_KEY):
        yield from {
            form.encode() for form in (secret, quote(secret, safe=""), quote(secret), quote_plus(secret))
        }


def test_no_secret_is_anywhere(run: str, place: Place, cluster: Any, tmp_path: Path) -> None:
    # Errors too: a database that is not there, and a store that refuses.
    away = place.env["AMA_STUDY_URL"].replace("127.0.0.1:", "127.0.0.1:1")
    for arguments, env in (
        (("status", run), {"AMA_STUDY_URL": away}),
        (("search", "tiny.yaml", "--out", "s3://no-such-bucket/x"), {}),
        (("search", "tiny.yaml", "-o", f"storage.study={away}", "-o", "seed=x", "--out", tmp_path), {}),
    ):
        ended = place.ama(*arguments, **env)
        assert ended.code == 2 and "Traceback" not in ended.output, ended.output
    texts = {f"output {i}": text.encode() for i, text in enumerate(place.outputs)}
    for bucket in place.s3.list_buckets()["Buckets"]:
        texts |= {f"{bucket['Name']}/{k}": v for k, v in place.objects(bucket["Name"]).items()}
    logs = Path(cluster.head_node.get_logs_dir_path())
    texts |= {str(file): file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    assert any(name.endswith("tuner.pkl") for name in texts) and len(texts["output 0"]) > 100
    for name, text in texts.items():
        for needle in needles():
            assert needle not in text, f"{name} holds {needle!r}"
