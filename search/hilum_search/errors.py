"""What can go wrong while networks are described, trained and exported.

HilumError
└── SearchError
    ├── ArchitectureError   an architecture outside its space, or JSON that names none
    ├── RecipeError         a recipe that cannot be read or contradicts itself
    └── DataError           training cases that are missing or do not fit the recipe
"""

from __future__ import annotations

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
