from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hilum_search.errors import DataError
from hilum_search.ledger import NAME, Entry, Hours, Ledger

DRIVER = """
import sys
from pathlib import Path
from hilum_search.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]), "settings")
for number in range(1, 100_000):
    if ledger.get(f"child-{number}") is None:
        ledger.add(key=f"child-{number}", stage="coarse", architecture="", seed=number, metrics={}, cost={})
        print(number, flush=True)
"""


def add(ledger: Ledger, key: str, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "stage": "coarse",
        "architecture": "a1",
        "seed": 7,
        "metrics": {"mean": 0.5},
        "cost": {"cpu_seconds": 1.0},
    }
    return ledger.add(key=key, **values | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search" / NAME


def test_entries_come_back_in_the_order_of_adding(path: Path) -> None:
    with Ledger(path, "settings") as ledger:
        added = [add(ledger, "b"), add(ledger, "a", stage="fine", seed=2**63 - 1)]
    with Ledger(path, "settings") as ledger:
        assert ledger.entries() == added
        assert [entry.number for entry in added] == [1, 2]
        assert ledger.entries("fine") == [ledger.get("a")] == added[1:]
        assert ledger.get("c") is None
        assert added[0].metrics == {"mean": 0.5}
        assert added[0].time.endswith("+00:00")
        assert {"hilum", "torch", "numpy", "python"} <= set(added[0].versions)


def test_the_same_content_again_returns_what_is_there(path: Path) -> None:
    with Ledger(path) as ledger:
        first = add(ledger, "a", metrics={"dice": {"liver": math.nan}, "entropies": (1.0, math.inf)})
        again = add(ledger, "a", metrics={"entropies": [1.0, None], "dice": {"liver": None}}, cost={"cpu_seconds": 9})
        assert again == first
        assert ledger.entries() == [first]
        with pytest.raises(DataError, match="holds a with another outcome"):
            add(ledger, "a", seed=8)
        with pytest.raises(DataError, match="holds a with another outcome"):
            add(ledger, "a", metrics={"mean": 0.4})


def test_metrics_that_are_not_finite_survive(path: Path) -> None:
    with Ledger(path) as ledger:
        added = add(ledger, "a", metrics={"mean": math.nan, "worst": -math.inf, "by label": {"1": math.nan}})
        assert added.metrics == {"mean": None, "worst": None, "by label": {"1": None}}


def test_contents_are_equal_where_only_time_cost_and_versions_differ(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(path) as one, Ledger(tmp_path / "other.sqlite") as other:
        add(one, "a", cost={"cpu_seconds": 1.0})
        monkeypatch.setattr("hilum_search.ledger.versions", lambda: {"hilum": "9"})
        add(other, "a", cost={"cpu_seconds": 2.0})
        assert one.contents() == other.contents()
        add(one, "b")
        add(other, "b", architecture="a2")
        assert one.contents() != other.contents()


def test_totals_are_hours_by_stage(path: Path) -> None:
    with Ledger(path) as ledger:
        add(ledger, "a", cost={"cpu_seconds": 3600.0, "gpu_seconds": 1800.0, "wall_seconds": 900.0})
        add(ledger, "b", stage="fine", cost={"cpu_seconds": 36.0})
        add(ledger, "c", cost={"cpu_seconds": 1800.0, "gpu_seconds": math.nan})
        assert ledger.totals() == {"coarse": Hours(1.5, 0.5, 0.25), "fine": Hours(0.01, 0.0, 0.0)}
        assert list(ledger.totals()) == ["coarse", "fine"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET seed = 1",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries",
        "INSERT OR REPLACE INTO entries (key, stage, architecture, seed, metrics, cost, versions, time) "
        "SELECT key, 'other', architecture, seed, metrics, cost, versions, time FROM entries",
        "UPDATE search SET settings = 'other'",
        "DELETE FROM search",
    ],
)
def test_nothing_can_be_changed_or_taken(path: Path, statement: str) -> None:
    with Ledger(path) as ledger:
        add(ledger, "a")
        before = ledger.entries()
    base = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        base.execute(statement)
    base.close()
    with Ledger(path) as ledger:
        assert ledger.entries() == before


def test_the_ledger_of_another_search_is_refused(path: Path) -> None:
    with Ledger(path, "settings"):
        pass
    with pytest.raises(DataError, match=r"The ledger in .*search belongs to another search .*; use a new folder\."):
        Ledger(path, "others")
    with Ledger(path, "settings") as ledger:
        assert ledger.entries() == []


def test_a_second_driver_is_refused_while_the_first_runs(path: Path) -> None:
    with Ledger(path) as ledger:
        with pytest.raises(DataError, match="Another search is writing"):
            Ledger(path)
        add(ledger, "a")
    with Ledger(path) as ledger:
        add(ledger, "b")


def test_readers_see_a_running_search_and_cannot_write(path: Path) -> None:
    with Ledger(path) as ledger:
        add(ledger, "a")
        with Ledger.read(path) as reader, Ledger.read(path) as another:
            assert reader.entries() == ledger.entries()
            add(ledger, "b")
            assert another.contents() == reader.contents() == ledger.contents()
            with pytest.raises(DataError, match="readonly"):
                add(reader, "c")
    with Ledger.read(path) as reader:
        assert len(reader.entries()) == 2


def test_reading_without_a_ledger_is_told(path: Path) -> None:
    with pytest.raises(DataError, match="There is no ledger of a search in"):
        Ledger.read(path)
    assert not path.parent.exists()
    path.parent.mkdir()
    path.touch()  # as kill -9 leaves it at the very beginning
    with pytest.raises(DataError, match="There is no ledger of a search in"):
        Ledger.read(path)
    Ledger(path).close()
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="cannot be used"):
        Ledger.read(path)
    with pytest.raises(DataError, match="cannot be used"):
        Ledger(path)


def test_a_folder_that_cannot_be_written_to_is_told(path: Path) -> None:
    path.with_name(f".{path.name}.lock").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be used"):
        Ledger(path)


def test_a_killed_driver_leaves_every_entry_and_the_next_goes_on(path: Path) -> None:
    last = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
        ) as driver:
            assert driver.stdout is not None
            told = [int(driver.stdout.readline()) for _ in range(20)]
            with pytest.raises(DataError, match="Another search is writing"):
                Ledger(path, "settings")
            os.kill(driver.pid, signal.SIGKILL)
            told += [int(line) for line in driver.stdout]
        assert told[0] in (last + 1, last + 2)  # one entry may be there that the driver had no time to tell of
        with Ledger.read(path) as ledger:
            entries = ledger.entries()
        last = entries[-1].number
        assert told[-1] <= last <= told[-1] + 1
        assert [entry.key for entry in entries] == [f"child-{number}" for number in range(1, last + 1)]
        assert [entry.number for entry in entries] == list(range(1, last + 1))


def test_the_ledger_needs_no_torch() -> None:
    code = "import hilum_search.ledger as l, sys\nl.versions()\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
