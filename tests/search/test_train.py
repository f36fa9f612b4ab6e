from __future__ import annotations

import csv
import doctest
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hilum_search import checkpoint, curve, optimise, snapshot
from hilum_search import train as module
from hilum_search.architecture import C2FNAS
from hilum_search.augment import Sample
from hilum_search.data import Case
from hilum_search.errors import ArchitectureError, DataError, RecipeError, TrainingError
from hilum_search.losses import soft_dice_loss
from hilum_search.network import Network, build
from hilum_search.own_architecture import OwnNetwork
from hilum_search.recipe import Recipe, parse_recipe
from hilum_search.record import Cases
from hilum_search.train import Own, Progress, train
from hilum_search.trained import read_trained


class StoppedError(Exception):
    pass


def stop_after(step: int) -> module.Report:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return report


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "weights.safetensors"))


def equal(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_loss_falls_and_the_phantom_is_learnt(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    losses: list[float] = []
    longer = recipe.with_training(steps=80, validate_every=80)
    cases = Cases.of(longer, [case.planes(0, 11)], [case.planes(15, 19)])
    trained = train(longer, cases, tmp_path / "run", lambda p: losses.append(p.loss))
    assert len(losses) == 80
    assert losses[-1] < 0.5 * losses[0]
    assert trained.training["dice"]["rod"] > 0.6
    assert trained.training["dice_per_case"] == {"phantom[15:19]": trained.training["dice"]}
    with (tmp_path / "run" / "curve.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["rod"]) == pytest.approx(trained.training["dice"]["rod"], abs=1e-4)
    assert float(last["rod enhanced"]) > 0.6


def test_half_precision_learns_nearly_the_same(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"f32": [], "bf16": []}
    for precision, kept in losses.items():
        chosen = recipe.with_training(steps=10, precision=precision)
        train(chosen, Cases.of(chosen, [case]), tmp_path / precision, lambda p, kept=kept: kept.append(p.loss))  # type: ignore[misc]
    assert losses["bf16"] != losses["f32"]
    assert losses["bf16"][-1] == pytest.approx(losses["f32"][-1], rel=0.1)


def test_the_folder_holds_everything_and_no_pickle(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    trained = train(recipe, Cases.of(recipe, [case]), tmp_path / "run")
    again = read_trained(tmp_path / "run")
    image = torch.rand(1, 1, 16, 16, 8)
    assert torch.equal(again.network(image), trained.network(image))
    assert again.manifest == trained.manifest
    assert again.manifest.fingerprint.cases == 1
    assert again.manifest.fingerprint.spacing == (2.0, 2.0, 2.0)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert [(each["name"], each["part"]) for each in record["cases"]] == [("phantom", "train")]
    assert (record["seed"], record["dice"], record["step"]) == (0, {}, 12)
    files = {path.suffix for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert files == {".json", ".safetensors", ".csv", ".png", ".md"}


def test_an_interrupted_run_goes_on_to_the_same_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    train(recipe, Cases.of(recipe, [case]), tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(recipe, Cases.of(recipe, [case]), tmp_path / "cut", stop_after(8))  # last checkpoint: step 5
    steps: list[int] = []
    train(recipe, Cases.of(recipe, [case]), tmp_path / "cut", lambda p: steps.append(p.step))
    assert steps == list(range(6, 13))
    assert equal(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd", "schedule": "poly", "learning_rate": 0.05},
        {"optimiser": "sgd", "momentum": 0.0, "schedule": "steps", "milestones": [0.5], "learning_rate": 0.05},
        {"deep_supervision": True, "voxel_loss": "focal", "region_loss": "tversky"},
        {"deterministic": True, "patience": 9, "validate_every": 3, "workers": 2},
    ],
    ids=["poly", "milestones", "supervision", "patience"],
)
def test_every_way_of_training_repeats_and_resumes_to_the_bit(
    changes: dict[str, object], recipe: Recipe, case: Case, tmp_path: Path
) -> None:
    chosen = recipe.with_training(**changes)
    cases = Cases.of(chosen, [case.planes(0, 11)], [case.planes(15, 19)])
    losses: list[float] = []
    train(chosen, cases, tmp_path / "a", lambda p: losses.append(p.loss))
    train(chosen, cases, tmp_path / "b")
    with pytest.raises(StoppedError):
        train(chosen, cases, tmp_path / "c", stop_after(8))
    train(chosen, cases, tmp_path / "c")
    assert equal(tmp_path / "a", tmp_path / "b")
    assert equal(tmp_path / "a", tmp_path / "c")
    assert losses[-1] < losses[0]


def test_threads_that_draw_ahead_change_nothing(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    for workers in (0, 3):
        chosen = recipe.with_training(steps=5, workers=workers)
        train(chosen, Cases.of(chosen, [case]), tmp_path / str(workers))
    assert equal(tmp_path / "0", tmp_path / "3")


def test_patience_ends_a_run_and_keeps_its_best_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    # Nothing is learnt at this rate, so no scoring after the first is better.
    chosen = recipe.with_training(steps=50, patience=2, validate_every=2, learning_rate=1e-12, ema=0.0)
    steps: list[int] = []
    trained = train(chosen, Cases.of(chosen, [case], [case]), tmp_path, lambda p: steps.append(p.step))
    assert steps[-1] == 6
    assert (trained.training["step"], trained.training["steps"]) == (2, 6)
    again: list[int] = []
    train(chosen, Cases.of(chosen, [case], [case]), tmp_path, lambda p: again.append(p.step))
    assert again == []  # a run that has ended is not taken up


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 1e-12, "ema": 0.0}], ids=["learning", "still"])
def test_the_record_tells_the_step_of_the_kept_weights(
    changes: dict[str, float], recipe: Recipe, case: Case, tmp_path: Path
) -> None:
    chosen = recipe.with_training(steps=10, patience=9, validate_every=4, **changes)
    cases = Cases.of(chosen, [case], [case])
    with pytest.raises(StoppedError):
        train(chosen, cases, tmp_path, stop_after(9))  # the last scoring, at step 10, is off the beat
    trained = train(chosen, cases, tmp_path)
    with (tmp_path / "curve.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rod"]]
    best = max(rows, key=lambda row: float(row["ball"]) + float(row["rod"]))  # the first of equals
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    assert (str(trained.training["step"]), trained.training["steps"]) == (best["step"], 10)


def test_offsets_move_the_finished_logits_only(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    short = recipe.with_training(steps=3)
    plain = train(short, Cases.of(short, [case]), tmp_path / "plain").network
    moved = short.with_training(logit_offsets=[0.0, -1.0, 2.0])
    offset = train(moved, Cases.of(moved, [case]), tmp_path / "moved").network
    image = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    change = (offset(image) - plain(image)).mean((0, 2, 3, 4))
    torch.testing.assert_close(change, torch.tensor([0.0, -1.0, 2.0]))


def test_the_cost_counts_every_stretch(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(recipe, Cases.of(recipe, [case]), tmp_path, stop_after(11))  # last checkpoint: step 10
    before = json.loads(_metadata(tmp_path)["notes"])["run"]["cpu_seconds"]
    whole = train(recipe, Cases.of(recipe, [case]), tmp_path).training["cpu_seconds"]
    assert whole > before > 0.05


def _metadata(folder: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        return dict(file.metadata())


def test_another_seed_gives_other_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    found = []
    for seed in (0, 1):
        short = recipe.with_training(steps=2, seed=seed)
        found.append(train(short, Cases.of(short, [case]), tmp_path / str(seed)).network.head.weight)
    assert not torch.equal(*found)


def test_a_run_of_another_recipe_or_other_cases_is_not_taken_up(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    short = recipe.with_training(steps=2)
    train(short, Cases.of(short, [case]), tmp_path / "run")
    with pytest.raises(DataError, match="another recipe"):
        train(short.with_training(seed=1), Cases.of(short, [case]), tmp_path / "run")
    with pytest.raises(DataError, match="other cases"):
        train(short, Cases.of(short, [case.planes(0, 12)]), tmp_path / "run")


def test_the_curve_has_no_row_twice_after_a_resume(
    recipe: Recipe, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CURVE_EVERY", 2)
    with pytest.raises(StoppedError):
        train(recipe, Cases.of(recipe, [case]), tmp_path, stop_after(9))
    train(recipe, Cases.of(recipe, [case]), tmp_path)
    with (tmp_path / "curve.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8, 10, 12]


def test_the_curve_of_an_interrupted_run_is_that_of_an_undisturbed_one(
    recipe: Recipe, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CURVE_EVERY", 2)
    cases = Cases.of(recipe, [case])
    train(recipe, cases, tmp_path / "whole")
    for step in (7, 9):
        with pytest.raises(StoppedError):
            train(recipe, cases, tmp_path / "cut", stop_after(step))
    train(recipe, cases, tmp_path / "cut")
    whole, cut = ([(row["step"], row["loss"]) for row in curve.read(tmp_path / name)] for name in ("whole", "cut"))
    assert whole == cut and len(whole) == 6


def test_a_checkpoint_of_an_earlier_form_is_taken_up(
    recipe: Recipe, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = Cases.of(recipe, [case])
    with pytest.raises(StoppedError):
        train(recipe, cases, tmp_path, stop_after(6))
    notes = snapshot.notes_of(tmp_path / checkpoint.NAME, _metadata(tmp_path)["digest"])
    assert notes is not None and notes["run"].pop("loss") > 0
    monkeypatch.setattr(snapshot, "notes_of", lambda *_: notes)
    losses: list[float] = []
    train(recipe, cases, tmp_path, lambda p: losses.append(p.loss))
    assert len(losses) == 7 and all(loss > 0 for loss in losses)


def test_fp16_is_refused_where_there_is_no_gpu(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    chosen = recipe.with_training(precision="fp16")
    with pytest.raises(RecipeError, match="needs a GPU"):
        train(chosen, Cases.of(chosen, [case]), tmp_path, own=Own(device=torch.device("cpu")))


def test_a_loss_that_is_no_number_ends_the_run(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    def broken(logits: Tensor, classes: Tensor) -> Tensor:
        return logits.sum() * torch.nan

    with pytest.raises(TrainingError, match="nan at step 1"):
        train(recipe, Cases.of(recipe, [case]), tmp_path, own=Own(loss=broken))


def test_own_loss_and_transform_take_part(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def transform(sample: Sample, chance: torch.Generator) -> Sample:
        seen.append(tuple(sample.image.shape))
        return Sample(sample.image * 0, sample.classes)

    def loss(logits: Tensor, classes: Tensor) -> Tensor:
        return soft_dice_loss(logits, classes)

    short = recipe.with_training(steps=2)
    train(short, Cases.of(short, [case]), tmp_path, own=Own(loss=loss, transform=transform))
    assert seen == [(1, 16, 16, 8)] * 4


def test_transfer_keeps_the_body_and_the_labels_of_the_same_name(
    recipe: Recipe, recipe_text: str, case: Case, tmp_path: Path
) -> None:
    before = train(recipe, Cases.of(recipe, [case]), tmp_path / "before")
    other = (
        recipe_text.replace('name = "ball"', 'name = "sphere"').replace("2e-2", "1e-12").replace("ema = 0.5", "ema = 0")
    )
    more = '[[labels]]\nname = "new"\nid = 3\nfrom_ids = [4]\n\n[[cases]]'
    other = other.replace("[[cases]]", more).replace("[1.0, 2.0, 2.0]", "[1.0, 2.0, 2.0, 2.0]")
    changed = parse_recipe(other).with_training(steps=1)
    after = train(changed, Cases.of(changed, [case]), tmp_path / "after", own=Own(start=tmp_path / "before"))
    assert len(after.training["start"]) == 64
    for key, value in before.network.body.state_dict().items():
        torch.testing.assert_close(after.network.body.state_dict()[key], value)
    old, new = before.network.head.weight, after.network.head.weight
    torch.testing.assert_close(new[[0, 2]], old[[0, 2]])  # background and rod
    assert not torch.allclose(new[1], old[1])


def test_offsets_of_the_model_before_are_not_taken_for_weights(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    still = recipe.with_training(steps=1, learning_rate=1e-12, ema=0.0)
    moved = still.with_training(logit_offsets=[0.0, -3.0, 2.0])
    before = train(moved, Cases.of(moved, [case]), tmp_path / "before").network.head.bias
    after = train(
        still, Cases.of(still, [case]), tmp_path / "after", own=Own(start=tmp_path / "before")
    ).network.head.bias
    assert before is not None and after is not None
    torch.testing.assert_close(after, before - torch.tensor([0.0, -3.0, 2.0]))


def test_weights_of_another_network_are_refused(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    short = recipe.with_training(steps=1)
    train(short, Cases.of(short, [case]), tmp_path / "before")
    other = short.with_architecture(C2FNAS(4, (0, 1, 0), ("2d", "p3d", "3d")))
    with pytest.raises(DataError, match="do not fit this run's network"):
        train(other, Cases.of(other, [case]), tmp_path / "after", own=Own(start=tmp_path / "before"))


PROGRAM = """
import sys
from pathlib import Path
from hilum_search.data import load_case
from hilum_search.cases import Files
from hilum_search.recipe import read_recipe
from hilum_search.record import Cases
from hilum_search.train import train

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
recipe = read_recipe(folder / "recipe.toml")
files = Files((folder / "phantom.nii.gz",), folder / "phantom_labels.nii.gz", "phantom")
case = load_case(files, recipe.manifest())
train(recipe, Cases.of(recipe, [case], [case.planes(2, 8)]), out, lambda p: print(p.step, flush=True))
"""


def test_kill_minus_nine_and_the_same_command_give_the_weights_of_an_undisturbed_run(
    recipe_text: str, files: object, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe_text.replace("steps = 12", "steps = 40"))
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    subprocess.run([*program, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*program, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 17:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    done = subprocess.run([*program, str(tmp_path / "cut")], check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[0]) > 10  # not from the start
    assert equal(tmp_path / "whole", tmp_path / "cut")


def test_two_processes_train_the_network_that_one_would(recipe_text: str, files: object, tmp_path: Path) -> None:
    # With plain cross-entropy the mean over two halves of a batch is that over the whole.
    plain = recipe_text.replace("[1.0, 2.0, 2.0]", "[1.0, 1.0, 1.0]\ndice_share = 0.0\noptimiser = 'sgd'\nbatch = 4")
    (tmp_path / "recipe.toml").write_text(plain)
    (tmp_path / "run.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, str(tmp_path / "run.py"), str(tmp_path), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(n) for n in range(1, 13)]  # the first process alone reports
    program = [sys.executable, str(tmp_path / "run.py"), str(tmp_path), str(tmp_path / "one")]
    subprocess.run(program, check=True, capture_output=True, env=environment)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.manual_seed(parse_recipe(plain).training.seed)
    fresh = build(parse_recipe(plain).architecture, 1, 3).state_dict()
    learnt = max(float((one[key] - fresh[key]).norm()) for key in one)
    apart = max(float((one[key] - two[key]).norm()) for key in one)
    assert learnt > 0.1
    assert apart < 1e-3 * learnt  # sums run in another order
    assert json.loads((tmp_path / "two" / "training.json").read_text())["step"] == 12


def test_a_batch_that_the_processes_cannot_share_is_refused(recipe: Recipe) -> None:
    from hilum_search.team import Team

    with pytest.raises(RecipeError, match="multiple of 3"):
        module._check(recipe, Team(0, 3))


def test_an_own_network_needs_a_body_and_a_head(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv3d(1, 5, 3, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return torch.relu(self.first(image))

    torch.manual_seed(0)
    mine = Network(Body(), nn.Conv3d(5, 3, 1))
    short = recipe.with_training(steps=2)
    with pytest.raises(RecipeError, match='family = "own"'):
        train(short, Cases.of(short, [case]), tmp_path, own=Own(network=mine))
    short = short.with_architecture(OwnNetwork("mine", 2))
    with pytest.raises(ArchitectureError, match="mine is its author's own"):
        train(short, Cases.of(short, [case]), tmp_path)
    trained = train(short, Cases.of(short, [case]), tmp_path, own=Own(network=mine))
    torch.manual_seed(1)
    again = read_trained(tmp_path, Network(Body(), nn.Conv3d(5, 3, 1)))
    image = torch.rand(1, 1, 16, 16, 8)
    assert torch.equal(again.network(image), trained.network(image))


def test_a_network_with_dropout_resumes_to_the_bit_too(recipe: Recipe, case: Case, tmp_path: Path) -> None:
    def mine() -> Network:
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.5))
        return Network(body, nn.Conv3d(6, 3, 1))

    chosen = recipe.with_architecture(OwnNetwork("dropout", 2))
    cases = Cases.of(chosen, [case])
    train(chosen, cases, tmp_path / "whole", own=Own(network=mine()))
    with pytest.raises(StoppedError):
        train(chosen, cases, tmp_path / "cut", stop_after(8), Own(network=mine()))
    train(chosen, cases, tmp_path / "cut", own=Own(network=mine()))
    assert equal(tmp_path / "whole", tmp_path / "cut")


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(optimise).failed == 0
