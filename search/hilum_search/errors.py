"""What can go wrong while networks are described, trained and exported.

HilumError
└── SearchError
    ├── ArchitectureError   an architecture outside its space, or JSON that names none
    ├── RecipeError         a recipe that cannot be read or contradicts itself
    ├── DataError           training cases that are missing or do not fit the recipe
    │   └── BadCasesError       several of them at once, a sentence for each
    └── TrainingError       a run that went astray
"""

from __future__ import annotations

from collections.abc import Sequence

from hilum_inference.errors import HilumError


class SearchError(HilumError):
    """Base of the errors of search and training."""

    code = "search_failed"


class ArchitectureError(SearchError):
    """An architecture outside its space."""

    code = "bad_architecture"


class RecipeError(SearchError):
    """A recipe that cannot be followed."""

    code = "bad_recipe"


class DataError(SearchError):
    """Training cases that are missing or do not fit."""

    code = "bad_data"


class TrainingError(SearchError):
    """A run that went astray: its loss is no number any more."""

    code = "training_failed"


class BadCasesError(DataError):
    """Cases that cannot be trained on: the message names the first, ``problems`` holds a sentence for each."""

    code = "bad_cases"

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (the first of {len(problems)} problems)" if len(problems) > 1 else ""
        super().__init__(f"{problems[0].removesuffix('.')}{more}.")
        self.problems = tuple(problems)
