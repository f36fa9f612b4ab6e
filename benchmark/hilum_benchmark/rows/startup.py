"""From the start of a process until it can work."""

from __future__ import annotations

from hilum_benchmark.figures import Figure, Measured, Metric, Rounds, at_most, times_less
from hilum_benchmark.process import run
from hilum_benchmark.row import Contender, Context, Row

HERE = "hilum_benchmark.rows.startup"


def engine(context: Context) -> Measured:
    """Import, read the demo model, compile it. CPU of the whole process counts."""
    from hilum_inference.engines import EngineSettings, open_engine
    from hilum_inference.repository import Repository, shipped_repository

    open_engine(Repository([shipped_repository()]).models()[0], EngineSettings(threads=1))
    return {}


def torch_network(context: Context) -> Measured:
    """Import torch and MONAI, build a UNet. CPU of the whole process counts."""
    import torch
    from monai.networks.nets import UNet

    torch.set_num_threads(1)
    UNet(3, 1, 4, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2).eval()
    return {}


def help_text(context: Context) -> Measured:
    """CPU seconds of ``hilum --help``."""
    import shutil
    import sys
    from pathlib import Path

    command = shutil.which("hilum", path=str(Path(sys.executable).parent)) or "hilum"
    used, _ = run([command, "--help"])
    return {"cpu_s": used.cpu_s, "wall_s": used.wall_s}


def _figures(rounds: Rounds) -> list[Figure]:
    ours, peer = Metric("hilum", "process_cpu_s"), Metric("monai", "process_cpu_s")
    return [
        *times_less(rounds, "engine ready: import and compile of the demo model, CPU", ours, peer, 3),
        *at_most(Metric("help", "cpu_s").values(rounds), "hilum --help, CPU", 0.3, "s"),
    ]


ROW = Row(
    "startup",
    "From process start to engine ready",
    {
        "hilum": Contender(f"{HERE}:engine"),
        "monai": Contender(f"{HERE}:torch_network"),
        "help": Contender(f"{HERE}:help_text"),
    },
    _figures,
    packages=("hilum_inference", "hilum_client", "hilum_benchmark"),
    note="The peer imports torch and MONAI and builds a UNet with random weights; reading weights is not asked of it.",
)
