"""The registry: what a name loads, when it is imported, and what a wrong one says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from trainables.errors import InputError
from trainables.registry import Registry, import_object


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with `FIVE = 5` in the working directory, which nothing has imported."""
    name = f"own_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text("FIVE = 5\n_HIDDEN = 6\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def numbers(name: str) -> Registry[int]:
    return Registry("number", "ama_search.numbers", {"five": f"{name}:FIVE", "pi": "math:pi"}, expects=int)


def install(folder: Path, group: str, **entries: str) -> None:
    """A package's metadata in `folder`, as pip would leave it."""
    place = folder / "toys-1.0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (place / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]) + "\n")


def refused(registry: Registry[int], text: str) -> str:
    with pytest.raises(InputError) as caught:
        registry.get(text)
    with pytest.raises(InputError) as checked:
        registry.check(text)
    assert str(checked.value) == str(caught.value)
    return str(caught.value)


def test_a_builtin_is_imported_when_it_is_asked_for(numbers, name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert name not in sys.modules
    assert numbers.names() == ("five", "pi")
    numbers.check("five")
    assert name not in sys.modules
    assert numbers.get("five") == 5


@pytest.mark.parametrize("form", ["import:{}:FIVE", "import:./{}.py:FIVE", "import:{}.py:FIVE"])
def test_an_import_text_names_a_module_or_a_file(numbers, name, form):
    assert numbers.get(form.format(name)) == 5


def test_a_file_elsewhere(numbers, name, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert numbers.get(f"import:{tmp_path}/{name}.py:FIVE") == 5


def test_a_file_that_was_sent_as_a_module_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert import_object(f"import:./{name}.py:FIVE") == 5


def test_a_file_may_not_have_the_name_of_another_module(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("FIVE = 5\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"another module is named 'random'.*another name"):
        import_object("import:./random.py:FIVE")


def test_the_working_directory_is_searched_last(name, tmp_path):
    import_object(f"import:{name}:FIVE")
    assert sys.path[0] != str(tmp_path)
    assert str(tmp_path) in sys.path


def test_entries_of_an_installed_package(numbers, name, tmp_path, monkeypatch):
    install(tmp_path / "site", "ama_search.numbers", cinque=f"{name}:FIVE", five="math:e")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path)
    assert numbers.names() == ("five", "pi", "cinque")
    assert numbers.get("cinque") == 5
    assert numbers.get("five") == 5  # the built-in one


def test_an_entry_point_that_cannot_be_loaded(numbers, tmp_path, monkeypatch):
    install(tmp_path / "site", "ama_search.numbers", six="nowhere_to_be_found:SIX")
    monkeypatch.syspath_prepend(tmp_path / "site")
    message = refused(numbers, "six")
    assert "nowhere_to_be_found:SIX of toys" in message
    assert "ModuleNotFoundError" in message


def test_an_unknown_name_says_what_there_is_and_how_to_bring_your_own(numbers):
    message = refused(numbers, "fife")
    for part in ("unknown number 'fife'", "nearest: five", "one of five, pi", "import:<package.module>"):
        assert part in message
    assert "ama_search.numbers" in message
    assert "nearest" not in refused(numbers, "zzz")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import:nowhere_to_be_found:X", "cannot import nowhere_to_be_found: ModuleNotFoundError"),
        ("import:./nowhere.py:X", "no such file"),
        ("import:OWN:FIFE", "does not have 'FIFE'; nearest: FIVE"),
        ("import:OWN", "expected import:<package.module>:<name>"),
        ("import:", "expected import:<package.module>:<name>"),
        ("import:own thing:FIVE", "expected import:<package.module>:<name>"),
        ("import:./two.dots.py:FIVE", "expected import:<package.module>:<name>"),
        ("import:OWN:", "expected import:<package.module>:<name>"),
        ("import:math:pi", "expected a number, an object of builtins.int, got float"),
    ],
)
def test_import_texts_that_cannot_be_used(numbers, name, text, part):
    assert part in refused(numbers, text.replace("OWN", name))


def test_a_module_that_fails_says_why(numbers, name, tmp_path):
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('no GPU here\\nat all')\n")
    assert refused(numbers, f"import:{name}:FIVE").endswith("RuntimeError: no GPU here")
