from __future__ import annotations

import numpy as np
import pytest

from hilum_client.scores import BONE, REFERENCE_IDS, dice, label_dice


def test_dice() -> None:
    a, b = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 1], bool)
    assert dice(a, b) == pytest.approx(4 / 7)
    assert dice(a, a) == 1.0 and dice(a, ~a) == 0.0
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) is None


def test_labels_against_unions() -> None:
    mask, reference = np.array([1, 1, 2, 0]), np.array([5, 25, 116, 117])
    assert label_dice(mask, 1, reference, REFERENCE_IDS["liver"]) == pytest.approx(2 / 3)
    assert label_dice(mask, 2, reference, BONE) == pytest.approx(2 / 3)


def test_bone_is_bone() -> None:
    assert {25, 50, 69, 78, 91, 92, 115, 116} <= set(BONE)
    assert not {24, 51, 68, 79, 90, 117} & set(BONE)
