"""What the tests of the images, of compose.yaml and of the chart read: stages of a Dockerfile, names of variables."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "hilum"
DOCKERFILE = ROOT / "Dockerfile"


@dataclass
class Stage:
    """One FROM with what follows it."""

    image: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """The arguments of every step of one kind."""
        return [text for kind, text in self.steps if kind == instruction]

    def one(self, instruction: str) -> str:
        """The arguments of its only step of a kind."""
        (text,) = self.all(instruction)
        return text

    def command(self, instruction: str) -> list[str]:
        """An exec form as words; a shell form is refused."""
        words = json.loads(self.one(instruction).split("CMD ", 1)[-1])
        return [str(word) for word in words]

    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        return dict(word.split("=", 1) for text in self.all("ENV") for word in shlex.split(text))


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    found: list[Stage] = []
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        kind, arguments = line.strip().split(None, 1)
        if kind == "FROM":
            image, _, name = arguments.partition(" AS ")
            found.append(Stage(image, name))
        else:
            found[-1].steps.append((kind, re.sub(r"\s+", " ", arguments)))
    return {stage.name: stage for stage in found}


def variables(prefix: str, paths: Iterable[Path]) -> dict[str, str]:
    """Every variable of that prefix that files name, and one file that does."""
    found: dict[str, str] = {}
    for path in paths:
        for name in re.findall(rf"\b{prefix}[A-Z][A-Z_]*[A-Z]\b", path.read_text()):
            found[name] = str(path.relative_to(ROOT))
    return found


def settings_variables() -> set[str]:
    """Every variable that the gateway's settings read."""
    from hilum_server.settings import GROUPS, PREFIX

    return {PREFIX + name.upper() for group in GROUPS.values() for name in group.model_fields}


def files_of_deployment() -> list[Path]:
    """Everything that may name a variable."""
    chart = [path for path in CHART.rglob("*") if path.is_file()]
    loose = [
        DOCKERFILE,
        ROOT / "compose.yaml",
        *(ROOT / "deploy").glob("*.*"),
        *(ROOT / "deploy" / "image").glob("*.py"),
    ]
    return [*loose, *chart, ROOT / "docs" / "deploy.md"]
