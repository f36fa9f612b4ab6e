"""Where the run of both searches works, how much of everything it does, and the result file of each of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hilum_benchmark import machine
from hilum_benchmark.process import MeasurementError
from hilum_inference.files import write_atomically
from hilum_search.architecture import Architecture, parse_architecture
from hilum_search.cases import Files
from hilum_search.children import CHILDREN, Work
from hilum_search.driver import Place, driving, finals, outcome
from hilum_search.recipe import Recipe, read_recipe

FORMAT = "hilum.search-run/1"
FINAL = "final"


@dataclass(frozen=True)
class Amounts:
    """How much is done; by default what the published page shows.

    Attributes:
        seeds: of V-NAS and its random search.
        steps: of the V-NAS super-net's weights.
        rate: of its alpha and beta.
        random_steps: of each network of the random search.
        filters: of the C2FNAS space.
        children: topologies of its coarse stage.
        child_steps: of each of them.
        supernet_steps: of its one-shot super-net.
        rank_filters: of the networks whose ranking is compared.
        rank_children: how many.
        rank_steps: of their full training.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 250
    rate: float = 0.05
    random_steps: int = 100
    filters: int = 8
    children: int = 12
    child_steps: int = 40
    supernet_steps: int = 300
    rank_filters: int = 4
    rank_children: int = 12
    rank_steps: int = 108


@dataclass(frozen=True)
class Entry:
    """A network that was trained on train and validation together and scored on what was held back.

    Attributes:
        name: of its kind; those of several seeds share it.
        architecture: of the network.
        dice: by label, on the slab that no choice has seen.
        mean: of these.
        folder: of its run, below the bench's.
    """

    name: str
    architecture: Architecture
    dice: Mapping[str, float]
    mean: float
    folder: str


@dataclass(frozen=True)
class Controls:
    """Networks that nobody searched; the settings by which their ledger is known."""

    networks: tuple[Architecture, ...]
    steps: int
    seed: int


@dataclass(frozen=True)
class Bench:
    """One run of everything.

    Attributes:
        recipe: a recipe or the name of one; its network is a V-NAS.
        data: folder of the cases.
        work: folder that keeps searches and runs.
        out: folder of the results.
        later: the case that is scored once, at the end; paths below ``data``.
        amounts: how much is done.
        workers: processes that train networks at once.
    """

    recipe: str
    data: Path
    work: Path
    out: Path
    later: Files
    amounts: Amounts = field(default_factory=Amounts)
    workers: int = 1

    @property
    def rules(self) -> Recipe:
        """The recipe, read."""
        return read_recipe(self.recipe)

    def job(self, folder: str) -> Work:
        """What is trained below a folder."""
        return Work(self.rules, self.data, self.work / folder, "cpu")

    def train(self, folder: str, networks: Mapping[str, Architecture], seed: int = 0) -> dict[str, Any]:
        """Named networks, trained as a chosen one is; what was trained before is read back."""
        plan = Controls(tuple(networks.values()), self.rules.training.steps, seed)
        children = finals(plan.networks, plan.steps, seed)
        (self.work / folder).mkdir(parents=True, exist_ok=True)
        with driving(self.job(folder), plan, Place(self.workers)) as driver:
            results = driver.evaluator(FINAL, len(children))(children)
        return {name: outcome(one, result) for name, one, result in zip(networks, children, results, strict=True)}

    def has(self, part: str) -> bool:
        """Whether a part has its result, by this recipe and these amounts."""
        path = self._path(part)
        if not path.is_file():
            return False
        about = json.loads(path.read_text())
        return bool(about["recipe"] == self.rules.digest and about["amounts"] == self._amounts)

    def read(self, part: str) -> dict[str, Any]:
        """What a part came to.

        Raises:
            MeasurementError: it has not been run.
        """
        if not self.has(part):
            raise MeasurementError(f"{part} has no result yet: hilum benchmark search --only {part}")
        found: dict[str, Any] = json.loads(self._path(part).read_text())["found"]
        return found

    def write(self, part: str, found: Mapping[str, Any]) -> None:
        """Keep what a part came to, with the command that makes it again."""
        self.out.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "part": part,
            "command": f"hilum benchmark search --only {part}",
            "recipe": self.rules.digest,
            "amounts": self._amounts,
            "machine": machine.facts(),
            "versions": machine.versions(),
            "found": found,
        }
        write_atomically(self._path(part), (json.dumps(content, indent=1) + "\n").encode())

    @property
    def _amounts(self) -> Any:
        """As JSON has them."""
        return json.loads(json.dumps(asdict(self.amounts)))

    def _path(self, part: str) -> Path:
        return self.out / f"{part}.json"


def entry(name: str, folder: str, found: Mapping[str, Any]) -> Entry:
    """A network of a report."""
    place = f"{folder}/{CHILDREN}/{found['key']}"
    return Entry(name, parse_architecture(json.dumps(found["architecture"])), found["dice"], found["mean"], place)


def averaged(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the range: of three seeds a standard deviation says less.

    >>> averaged([0.5, 0.7])
    (0.6, 0.1)
    """
    middle = sum(values) / len(values)
    return round(middle, 4), round((max(values) - min(values)) / 2, 4)
