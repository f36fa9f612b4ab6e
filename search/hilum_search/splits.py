"""Which cases train, which choose, which are kept for the end."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from hilum_search.cases import Files, Part, Split
from hilum_search.errors import DataError
from hilum_search.recipe import Splitting

Planes = tuple[int, int | None]


def split_cases(files: Sequence[Files], rules: Splitting) -> Split:
    """The parts that train, validate and test; the order of ``files`` does not matter.

    Patients are dealt in the order of a digest of seed and patient, so that one patient more or less moves few others.
    A case of no known patient is taken for a patient of its own.

    Raises:
        DataError: no cases, two of one name, or fewer patients than the parts need.
    """
    cases = sorted(files, key=lambda each: each.name)
    if not cases:
        raise DataError("There are no cases to split.")
    twice = next((a.name for a, b in itertools.pairwise(cases) if a.name == b.name), None)
    if twice is not None:
        raise DataError(f"Two cases are named {twice}; names must differ, or a split cannot tell them apart.")
    if rules.validation_planes or rules.test_planes:
        return _by_planes(cases, rules)
    return _by_patients(cases, rules)


def folds_of(files: Sequence[Files], rules: Splitting) -> tuple[Split, ...]:
    """The split of every fold in turn; the test is the same in all of them.

    Raises:
        DataError: see split_cases.
    """
    return tuple(split_cases(files, rules.model_copy(update={"fold": fold})) for fold in range(rules.folds))


def _by_patients(cases: Sequence[Files], rules: Splitting) -> Split:
    groups: dict[str, list[Files]] = defaultdict(list)
    for each in cases:
        groups[f"patient {each.patient}" if each.patient else f"case {each.name}"].append(each)
    dealt = sorted(groups, key=lambda patient: hashlib.sha256(f"{rules.seed} {patient}".encode()).digest())
    kept = _test_count(len(dealt), rules)
    rest = dealt[kept:]
    chosen = [] if rules.fold is None else rest[rules.fold :: rules.folds]
    trained = [patient for patient in rest if patient not in chosen]
    train, validation, test = (_parts(groups[patient] for patient in side) for side in (trained, chosen, dealt[:kept]))
    return Split(train, validation, test)


def _parts(groups: Iterable[Sequence[Files]]) -> tuple[Part, ...]:
    """Whole cases, in order of their names."""
    cases = sorted((each for group in groups for each in group), key=lambda each: each.name)
    return tuple(Part(each) for each in cases)


def _test_count(patients: int, rules: Splitting) -> int:
    """Patients kept for the end: the share rounded, one at least where one is asked for."""
    kept = max(1, math.floor(rules.test_share * patients + 0.5)) if rules.test_share else 0
    needed = 1 if rules.fold is None else rules.folds
    if patients - kept < needed:
        test = f" besides {kept} for the test" if kept else ""
        parts = "training needs" if rules.fold is None else f"{rules.folds} folds need"
        raise DataError(
            f"There are {patients} patients; {parts} at least {needed}{test}: add cases, or lower split.folds or "
            "split.test_share."
        )
    return kept


def _by_planes(cases: Iterable[Files], rules: Splitting) -> Split:
    """The same slabs of every case; stretches between them, less the gap, train. How many planes a case has is unknown
    here: the last stretch is open."""
    slabs = sorted((*rules.validation_planes, *rules.test_planes))
    stretches = _stretches(slabs, rules.gap)
    train, validation, test = [], [], []
    for each in cases:
        train += [Part(each, stretch) for stretch in stretches]
        validation += [Part(each, slab) for slab in sorted(rules.validation_planes)]
        test += [Part(each, slab) for slab in sorted(rules.test_planes)]
    return Split(tuple(train), tuple(validation), tuple(test))


def _stretches(slabs: Sequence[tuple[int, int]], gap: int) -> list[Planes]:
    """What the sorted slabs leave, ``gap`` planes beside each left out.

    >>> _stretches([(4, 8), (20, 24)], 2)
    [(0, 2), (10, 18), (26, None)]
    """
    found: list[Planes] = []
    start = 0
    for first, last in slabs:
        if first - gap > start:
            found.append((start, first - gap))
        start = last + gap
    return [*found, (start, None)]
