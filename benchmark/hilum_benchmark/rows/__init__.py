"""The rows of each benchmark, in the order of their table."""

from __future__ import annotations

from hilum_benchmark.row import Row
from hilum_benchmark.rows import (
    best,
    blending,
    exporting,
    gateway,
    int8,
    io,
    startup,
    training,
    triton,
    upload,
    whole,
    window,
)

VOLUME_ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        window.ROW,
        blending.ROW,
        blending.LENGTH,
        blending.HUGE,
        io.ROW,
        whole.ROW,
        startup.ROW,
        upload.ROW,
        gateway.ROW,
        gateway.INSTALL,
    )
}
EXPORT_ROWS: dict[str, Row] = {row.name: row for row in (int8.ROW, best.ROW, exporting.ROW, triton.ROW)}
TRAINING_ROWS: dict[str, Row] = {row.name: row for row in (training.STEP, training.EPOCH)}
