"""The recipes that Hilum brings: each is tried as a user would, and says where its settings come from."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from hilum_search.architecture import NAMED
from hilum_search.dry_run import DryRun, describe, dry_run
from hilum_search.recipe import Recipe, read_recipe

ROOT = Path(__file__).resolve().parents[2]
CERTAINTIES = (
    "stated in the talk",
    "read in a re-implementation",
    "read in two",
    "recalled, not verified",
    "our choice",
)
CT = (("CT", "CT"),)
MRI = (("MRI", "MR"),)
TASKS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "vnas-nih-pancreas": (CT, ("pancreas",)),
    "vnas-msd-lung": (CT, ("cancer",)),
    "vnas-msd-pancreas": (CT, ("pancreas", "cancer")),
    "c2fnas-msd-brain-tumour": (
        (("FLAIR", "MR"), ("T1w", "MR"), ("T1gd", "MR"), ("T2w", "MR")),
        ("edema", "non-enhancing tumor", "enhancing tumour"),
    ),
    "c2fnas-msd-heart": (MRI, ("left atrium",)),
    "c2fnas-msd-liver": (CT, ("liver", "cancer")),
    "c2fnas-msd-hippocampus": (MRI, ("Anterior", "Posterior")),
    "c2fnas-msd-prostate": ((("T2", "MR"), ("ADC", "MR")), ("PZ", "TZ")),
    "c2fnas-msd-lung": (CT, ("cancer",)),
    "c2fnas-msd-pancreas": (CT, ("pancreas", "cancer")),
    "c2fnas-msd-hepatic-vessel": (CT, ("Vessel", "Tumour")),
    "c2fnas-msd-spleen": (CT, ("spleen",)),
    "c2fnas-msd-colon": (CT, ("colon cancer primaries",)),
}
NETWORKS = {
    "vnas-nih-pancreas": "vnas-nih-pancreas",
    "vnas-msd-lung": "vnas-nih-pancreas",
    "vnas-msd-pancreas": "vnas-msd-pancreas",
}
named = pytest.mark.parametrize("name", TASKS)


@functools.cache
def tried(name: str) -> tuple[Recipe, DryRun]:
    recipe = read_recipe(name)
    return recipe, dry_run(recipe)


def text_of(name: str) -> str:
    return (ROOT / "search" / "recipes" / f"{name}.toml").read_text()


def test_there_are_thirteen_besides_the_demos() -> None:
    found = {path.stem for path in (ROOT / "search" / "recipes").glob("*.toml")}
    assert found == {"demo", "demo_search", *TASKS}
    assert len(TASKS) == 13


@named
def test_it_dry_runs_in_its_real_shapes(name: str) -> None:
    recipe, run = tried(name)
    channels, labels = TASKS[name]
    batch = recipe.training.batch
    assert run.images == (batch, len(channels), 96, 96, 96)
    assert run.logits == ((batch, len(labels) + 1, 96, 96, 96),)
    assert run.windows == 320_000
    assert 0 < run.loss < 5
    assert [each.rate.gpu for each in run.hours] == ["V100 16 GB", "A100", "H100"]
    assert describe(run).startswith(f"{name}: its parts fit together")


@named
def test_it_has_its_tasks_channels_and_labels(name: str) -> None:
    recipe = read_recipe(name)
    channels, labels = TASKS[name]
    assert recipe.name == name
    assert tuple((c.name, c.modality) for c in recipe.file.channels) == channels
    assert tuple((label.name, label.id, label.from_ids) for label in recipe.labels) == tuple(
        (label, number, (number,)) for number, label in enumerate(labels, 1)
    )


@named
def test_it_has_the_searched_network_and_the_published_folds(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.architecture == NAMED[NETWORKS.get(name, "c2fnas-panc")]
    assert (recipe.split.folds, recipe.split.fold) == (4 if name.startswith("vnas") else 5, None)
    assert recipe.file.cases == ()


@named
def test_every_setting_says_where_it_comes_from(name: str) -> None:
    section, told, before = "", "", ""
    for line in text_of(name).splitlines():
        if line.startswith("#"):
            told = f"{told} {line[2:]}" if before.startswith("#") else line[2:]
        elif not line:
            told = ""
        elif line.startswith("["):
            section = line.strip("[]").split(".")[0]
        elif "=" in line and section not in ("", "channels", "labels"):
            assert any(certainty in told.lower() for certainty in CERTAINTIES), f"{section}: {line}"
        before = line


@named
def test_its_first_lines_are_the_command(name: str) -> None:
    assert re.search(rf"^# hilum train --recipe {name} --data \S+ --out runs/\S+ --fold 0$", text_of(name), re.M)


@named
def test_codes_come_with_a_category(name: str) -> None:
    for label in read_recipe(name).labels:
        assert (label.type is None) == (label.category is None)
        assert all(code is None or code.scheme == "SCT" for code in (label.type, label.category))


@named
def test_the_page_tells_what_the_dry_run_tells(name: str) -> None:
    recipe, run = tried(name)
    page = (ROOT / "docs" / "recipes.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    hours = " / ".join(f"{each.hours:.3g}" for each in run.hours)
    cost = f"{len(recipe.labels)} | {run.macs / 1e9:.2f} | {run.steps:,} x {run.batch} | {run.folds}"
    assert row.endswith(f"| {cost} | {hours} |")


def test_the_page_tells_the_memory_that_is_estimated() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    c2fnas, vnas = (tried(name)[1].memory for name in ("c2fnas-msd-pancreas", "vnas-nih-pancreas"))
    assert f"{c2fnas.window / 1e9:.1f} GB for a training step of C2FNAS-Panc" in page
    assert (
        f"{c2fnas.step / 1e9:.0f} GB for all 8;\nV-NAS {vnas.window / 1e9:.1f} GB and {vnas.step / 1e9:.0f} GB" in page
    )
