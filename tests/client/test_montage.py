from __future__ import annotations

import numpy as np

from hilum_client.montage import (
    PALETTE,
    Shown,
    body,
    edge,
    longest_run,
    montage,
    most_labelled,
    on_screen,
    overlay,
    spread,
)
from hilum_client.nifti import Image


def test_radiological_display() -> None:
    cut = np.zeros((4, 3))
    cut[3, 2] = 1  # right and anterior
    shown = on_screen(cut)
    assert shown.shape == (3, 4) and shown[0, 0] == 1


def test_labels_are_tinted_and_edged_where_they_lie() -> None:
    ct, ids = np.full((10, 10), -1000.0), np.zeros((10, 10), np.uint8)
    ids[6:, 6:] = 2
    pixels = np.asarray(overlay(ct, ids, [Shown(1, "a"), Shown(2, "b")], (100, 100)))
    assert tuple(pixels[80, 80]) == (0, 0, 0)
    inside = pixels[10, 10].astype(int)
    assert tuple(inside) == tuple(round(0.34 * c) for c in PALETTE[1])
    assert (pixels == PALETTE[1]).all(axis=2).any()


def test_grey_follows_the_window() -> None:
    values = [-1000.0, -160.0, 40.0, 240.0, 3000.0]
    greys = [int(np.asarray(overlay(np.full((4, 4), v), np.zeros((4, 4)), [], (4, 4)))[0, 0, 0]) for v in values]
    assert greys == [0, 0, 127, 255, 255]


def test_body_leaves_the_table_out_and_keeps_the_arms() -> None:
    ct = np.full((100, 100, 3), -1000.0)
    ct[30:70, 40:80] = 40  # trunk
    ct[10:15, 50:70] = 40  # an arm, apart from it
    ct[20:80, 5:7] = 200  # the table behind
    assert body(ct) == (slice(2, 78), slice(32, 88), slice(0, 3))
    assert body(np.full((5, 6, 7), -1000.0)) == (slice(0, 13), slice(0, 14), slice(0, 7))


def test_small_parts() -> None:
    assert spread(20, 12)[0] == 19 and spread(20, 12)[-1] == 0 and len(set(spread(20, 12))) == 12
    assert longest_run(np.zeros(4, bool)) == (0, 4)
    assert edge(np.ones((5, 5), bool)).sum() == 16
    ids = np.zeros((3, 8, 3))
    assert most_labelled(ids) == 4
    ids[:, 6] = 1
    assert most_labelled(ids) == 6


def test_the_picture_is_the_same_for_every_voxel_order() -> None:
    rng = np.random.default_rng(0)
    ct = rng.normal(40, 30, (24, 20, 5))
    mask = (ct > 60).astype(np.uint8)
    affine = np.diag([3.0, 3.0, 5.0, 1.0])
    stored = Image(ct, affine)
    labels = [Shown(1, "liver  12 ml")]
    picture = montage(stored, mask, labels, "title")
    turned_affine = np.diag([-3.0, -3.0, 5.0, 1.0])
    turned_affine[:2, 3] = [3.0 * 23, 3.0 * 19]
    turned = montage(Image(ct[::-1, ::-1], turned_affine), mask[::-1, ::-1], labels, "title")
    assert picture.tobytes() == turned.tobytes()
    pixels = np.asarray(picture)
    assert picture.width == 1374 and (pixels == PALETTE[0]).all(axis=2).any()
