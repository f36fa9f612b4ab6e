from __future__ import annotations

import pytest

from hilum_search.optimise import learning_rate
from hilum_search.recipe import Training


@pytest.mark.parametrize("share", [0.07, 0.14, 0.28, 0.29, 0.55, 0.57])  # of 100 some are a little more than whole
def test_the_rate_falls_at_the_step_of_a_milestone(share: float) -> None:
    rules = {"steps": 100, "warmup": 0, "schedule": "steps", "milestones": (share,), "decay": 0.5}
    training = Training.model_validate(rules | {"learning_rate": 1.0, "class_weights": (1.0, 1.0)})
    step = round(100 * share)
    assert [learning_rate(training, each) for each in (step - 1, step)] == [1.0, 0.5]
