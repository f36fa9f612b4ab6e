from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hilum_search import store as module
from hilum_search.cases import Files, Part
from hilum_search.data import Case, load_case, load_part
from hilum_search.errors import DataError
from hilum_search.recipe import Recipe
from hilum_search.store import Store, pack, running, unpack
from hilum_search.windows import Windows, prepare


def parts(files: Files) -> list[Part]:
    return [Part(files, (first, first + 4)) for first in range(0, 20, 4)]


def test_a_packed_case_comes_back_as_it_was(recipe: Recipe, files: Files) -> None:
    prepared = prepare(load_case(files, recipe.manifest()), recipe)
    back = unpack(pack(prepared))
    np.testing.assert_array_equal(back.case.image, prepared.case.image)
    np.testing.assert_array_equal(back.case.ids, prepared.case.ids)
    assert (back.case.name, back.case.normalisers) == (prepared.case.name, prepared.case.normalisers)
    assert all(torch.equal(a, b) for a, b in zip(back.seeds, prepared.seeds, strict=True))


@pytest.mark.parametrize("keep", ["memory", "smart", "disk", "no"])
def test_every_way_of_keeping_gives_the_same_windows(keep: str, recipe: Recipe, files: Files, tmp_path: Path) -> None:
    chosen = recipe.with_training(keep=keep, cached_cases=9)
    store = Store(parts(files), chosen, tmp_path / "run")
    assert [each.case.name for each in store[1:3]] == ["phantom[4:8]", "phantom[8:12]"]
    images, classes = Windows(store, chosen).batch(2, range(3))
    plain = [prepare(load_case(files, recipe.manifest()).planes(n, n + 4), recipe) for n in range(0, 20, 4)]
    expected = Windows(plain, recipe).batch(2, range(3))
    assert torch.equal(images, expected[0])
    assert torch.equal(classes, expected[1])


def test_what_is_kept_on_disk_is_not_prepared_again(
    recipe: Recipe, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe.with_training(keep="disk")
    list(Store(parts(files), chosen, tmp_path / "run"))
    kept = sorted((tmp_path / "run" / "cache").iterdir())
    assert len(kept) == 5
    monkeypatch.setattr(module, "load_part", lambda *_: pytest.fail("was read again"))
    again = Store(parts(files), chosen, tmp_path / "run")
    assert again[4].case.name == "phantom[16:20]"
    monkeypatch.undo()
    other = chosen.with_training()  # the same rules: the same cache
    list(Store(parts(files), other, tmp_path / "run"))
    assert sorted((tmp_path / "run" / "cache").iterdir()) == kept


@pytest.mark.parametrize("keep", ["memory", "disk", "no"])
def test_our_own_sentences_come_through_monai(keep: str, recipe: Recipe, files: Files, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="outside the 20 planes"):
        list(Store([Part(files, (15, 25))], recipe.with_training(keep=keep), tmp_path))


def test_a_file_cut_short_by_a_kill_is_made_again(recipe: Recipe, files: Files, tmp_path: Path) -> None:
    chosen = recipe.with_training(keep="disk")
    before = list(Store(parts(files), chosen, tmp_path))
    for number, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        path.write_bytes(path.read_bytes()[: number * 300])
    again = list(Store(parts(files), chosen, tmp_path))
    for one, other in zip(before, again, strict=True):
        np.testing.assert_array_equal(one.case.image, other.case.image)
    assert all(path.suffix == ".pt" for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize(("keep", "reads"), [("memory", 5), ("no", 15)])
def test_cases_in_memory_are_read_once(
    keep: str, reads: int, recipe: Recipe, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def reading(part: Part, recipe: Recipe) -> Case:
        seen.append(part.name)
        return load_part(part, recipe)

    monkeypatch.setattr(module, "load_part", reading)
    store = Store(parts(files), recipe.with_training(keep=keep), tmp_path)
    for _ in range(3):
        list(store)
    assert len(seen) == reads


def test_a_smart_cache_holds_some_and_exchanges_them(recipe: Recipe, files: Files, tmp_path: Path) -> None:
    chosen = recipe.with_training(keep="smart", cached_cases=2)
    store = Store(parts(files), chosen, tmp_path)
    assert len(store) == 2
    seen = set()
    with running(store):
        for _ in range(12):
            seen |= {store[n].case.name for n in range(2)}
    assert len(seen) > 2
