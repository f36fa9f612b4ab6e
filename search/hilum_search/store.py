"""Prepared cases kept by MONAI's datasets: in memory, a changing part of them, on disk, or not at all."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from hilum_inference.errors import HilumError
from hilum_inference.intensity import Linear, Normaliser
from hilum_search.cases import Part
from hilum_search.data import Case, load_part
from hilum_search.windows import Prepared, prepare

if TYPE_CHECKING:
    from hilum_search.recipe import Recipe

EXCHANGED = 0.2
"""Share of a smart cache that changes from epoch to epoch."""


class Store(Sequence[Prepared]):
    """Cases prepared when they are first wanted, and kept as ``recipe.training.keep`` says.

    Args:
        parts: the cases, at least one.
        recipe: how they are prepared.
        folder: for what is kept on disk.
    """

    def __init__(self, parts: Sequence[Part], recipe: Recipe, folder: Path) -> None:
        self.parts = tuple(parts)
        self._recipe = recipe
        self._served = 0
        self._lock = threading.Lock()
        # A plain dictionary, so that a cache on disk knows a part and its rules by their own values.
        rules = recipe.file.model_dump_json(include={"preprocessing", "channels", "labels", "augmentation"})
        items = [{"number": n, "part": _identity(each), "rules": rules} for n, each in enumerate(self.parts)]
        with _plain_errors():
            self._data = _dataset(items, self.parts, recipe, folder)
        self._smart = hasattr(self._data, "update_cache")

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> Prepared: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prepared]: ...
    def __getitem__(self, index: int | slice) -> Prepared | Sequence[Prepared]:
        """The case at ``index``."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if self._smart:
            with self._lock:  # windows may be drawn in several threads
                self._served += 1
                if self._served % len(self) == 0:
                    self._data.update_cache()
        with _plain_errors():
            return unpack(self._data[index])

    def every(self) -> Iterator[Prepared]:
        """Every case once, also those that a smart cache does not hold now."""
        if not self._smart:
            yield from self
            return
        for part in self.parts:
            yield prepare(load_part(part, self._recipe), self._recipe)

    def start(self) -> None:
        """Begin to exchange cases in the background, where the cache is a smart one."""
        if self._smart:
            self._data.start()

    def stop(self) -> None:
        """End what ``start`` began."""
        if self._smart:
            self._data.shutdown()


@contextlib.contextmanager
def running(cases: Sequence[Prepared]) -> Iterator[None]:
    """While cases are drawn: a smart cache exchanges some in the background."""
    if not isinstance(cases, Store):
        yield
        return
    cases.start()
    try:
        yield
    finally:
        cases.stop()


def _identity(part: Part) -> str:
    """What tells a part from another: its files, by size and time of change too, and its planes."""
    found = []
    for path in (*part.files.images, part.files.labels):
        state = path.stat()
        found.append((str(path), state.st_size, state.st_mtime_ns))
    return repr((found, part.planes))


def pack(prepared: Prepared) -> dict[str, Any]:
    """A prepared case as tensors and text: what a file without code can hold."""
    case = prepared.case
    return {
        "name": case.name,
        "image": torch.from_numpy(case.image),
        "ids": torch.from_numpy(case.ids),
        "normalisers": json.dumps([dataclasses.asdict(each) for each in case.normalisers]),
        "seeds": list(prepared.seeds),
    }


def unpack(fields: dict[str, Any]) -> Prepared:
    """The prepared case; nothing is copied."""
    normalisers = tuple(
        Normaliser(**(each | {"steps": tuple(Linear(**step) for step in each["steps"])}))
        for each in json.loads(fields["normalisers"])
    )
    case = Case(fields["name"], fields["image"].numpy(), fields["ids"].numpy(), normalisers)
    return Prepared(case, tuple(fields["seeds"]))


def _dataset(items: list[dict[str, Any]], parts: Sequence[Part], recipe: Recipe, folder: Path) -> Any:
    from monai.data import CacheDataset, Dataset, SmartCacheDataset
    from monai.transforms import Transform

    class Prepare(Transform):  # type: ignore[misc]  # MONAI keeps what comes out of its own kind of transform only
        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            return pack(prepare(load_part(parts[item["number"]], recipe), recipe))

    transform = Prepare()
    keep, cached = recipe.training.keep, recipe.training.cached_cases
    if keep == "no":
        return Dataset(items, transform)
    if keep == "disk":
        return _on_disk(items, transform, folder / "cache")
    if keep == "smart" and cached < len(items):
        return SmartCacheDataset(
            items, transform, EXCHANGED, cached, progress=False, seed=recipe.training.seed, copy_cache=False
        )
    return CacheDataset(items, transform, progress=False, copy_cache=False)


def _on_disk(items: list[dict[str, Any]], transform: Any, folder: Path) -> Any:
    """MONAI's cache on disk, but a file appears only whole, and one that cannot be read is made again."""
    from monai.data import PersistentDataset

    class Kept(PersistentDataset):  # type: ignore[misc]
        def _cachecheck(self, item_transformed: dict[str, Any]) -> Any:
            path = Path(self.cache_dir) / f"{self.hash_func(item_transformed).decode()}.pt"
            # Mapped: a window reads its own part of a case only.
            with contextlib.suppress(OSError, EOFError, RuntimeError, pickle.UnpicklingError):
                return torch.load(path, weights_only=True, mmap=True)
            made = self._pre_transform(copy.deepcopy(item_transformed))
            partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
            torch.save(made, partial)
            partial.replace(path)
            return made

    return Kept(items, transform, folder)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """MONAI wraps what a transform raises; our own sentences come through."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HilumError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from error
