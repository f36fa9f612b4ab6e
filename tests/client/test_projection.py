"""The picture of a mask alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hilum_client.projection import BACKGROUND, project

RED, BLUE = (200, 10, 10), (10, 10, 200)


def _share(picture: NDArray[np.uint8], channel: int) -> float:
    return float((picture[..., channel].astype(int) > picture.sum(-1) * 0.6).mean())


def test_the_patients_right_is_on_the_left_and_up_is_up() -> None:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[25:38, 10:20, 12:18] = 1  # RAS: a high i is the patient's right
    picture = project(labels, (2.0, 2.0, 2.0), {1: RED})
    front = picture[:, : picture.shape[1] // 2]
    rows, columns = np.nonzero(front[..., 0] > 60)
    assert columns.mean() < front.shape[1] / 2
    assert rows.mean() < front.shape[0] / 2


def test_what_lies_in_front_hides_what_lies_behind() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[:, 15:18, :] = 1  # anterior
    labels[:, 2:6, :] = 2
    front = project(labels, (1.0, 1.0, 1.0), {1: RED, 2: BLUE})
    front = front[:, : front.shape[1] // 2]
    assert _share(front, 0) > 0.3
    assert _share(front, 2) == 0


def test_an_empty_mask_is_all_background() -> None:
    picture = project(np.zeros((8, 8, 8), np.uint8), (1.0, 1.0, 1.0), {})
    assert (picture == np.array(BACKGROUND)).all()
