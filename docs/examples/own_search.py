"""Search a topology with an evaluator of one's own: here the cheaper network is the better one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hilum_search.c2fnas.coarse import Coarse, Settings, coarse
from hilum_search.children import Child, Result
from hilum_search.cost import cost
from hilum_search.spaces import C2FNASSpace


def evaluate(children: Sequence[Child]) -> list[Result]:
    """A score instead of a training."""
    macs = [cost(child.architecture, 1, 2, (32, 32, 32)).macs for child in children]
    return [Result(mean=1 / (1 + each / 1e9)) for each in macs]


def main() -> Coarse:
    """Look at 12 of the 35 topologies of eight cells and three levels."""
    space = C2FNASSpace(filters=2, cells=8, shape=(0, 1, 2, 1, 0))
    found = coarse(space, evaluate, Settings(steps=1, budget=12, batch=4, clusters=4))
    sys.stdout.write(f"best: {space.walks[found.best]}\n")
    return found


if __name__ == "__main__":
    main()
