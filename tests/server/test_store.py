"""The job store: what is written once stays, once."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hilum_server.store import SCHEMA, Job, Store, StoreError, file_system_of

POISON = {"code": "poison", "detail": "given up"}
JOB = Job(id="a" * 32, owner="anna", model="bright", version="1", images={"CT": "v" * 32}, key="k1")

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/export /mnt/share nfs4 rw 0 0
tmpfs /mnt/share/scratch tmpfs rw 0 0
//nas/x /mnt/with\\040space cifs rw 0 0
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.sqlite").open()


def test_a_job_comes_back_as_it_was_stored(store: Store) -> None:
    job = replace(JOB, report={"labels": []}, result={"sha256": "x", "bytes": 3}, error={"code": "c", "detail": "d"})
    store.add(job)
    store.close()
    assert Store(store.path).open().get(job.id) == job


def test_same_owner_and_key_give_the_first_job(store: Store) -> None:
    assert store.add(JOB) == (JOB, True)
    assert store.add(replace(JOB, id="b" * 32)) == (JOB, False)
    other = replace(JOB, id="c" * 32, owner="ben")
    assert store.add(other) == (other, True)
    for number in range(2):
        assert store.add(replace(JOB, id=f"no-key-{number}", key=None))[1]


def test_a_store_of_the_first_schema_is_taken_over(tmp_path: Path) -> None:
    from hilum_server.store import _MIGRATIONS

    with sqlite3.connect(tmp_path / "jobs.sqlite") as old:
        for step in _MIGRATIONS[0]:
            old.execute(str(step))
        old.execute("PRAGMA user_version = 1")
        old.execute(
            "INSERT INTO jobs (id, owner, key, status, model, version, digest, priority, images, created, attempts) "
            "VALUES ('a', 'anna', 'k1', 'queued', 'bright', '1', '', 'batch', '{}', 0, 0)"
        )
    old.close()
    kept = Store(tmp_path / "jobs.sqlite").open()
    assert [(job.id, job.asked) for job in kept.unfinished()] == [("a", None)]
    kept.close()


def test_an_order_of_the_first_schema_is_told_by_what_it_came_to() -> None:
    stored = Job("a", "anna", "bright", "1", images={"CT": "v"}, key="k")
    again = replace(stored, id="b", version="", images={"": "v"}, asked="as written")
    assert stored.same_order(again) and stored.same_order(replace(again, model=""))
    for other in ({"model": "dark"}, {"images": {"": "w"}}, {"priority": "interactive"}):
        assert not stored.same_order(replace(again, **other))


def test_only_a_job_in_the_expected_state_is_changed(store: Store) -> None:
    store.add(JOB)
    assert store.save(replace(JOB, status="cancelled"), was="queued")
    assert not store.save(replace(JOB, status="done"), was="running")
    found = store.get(JOB.id)
    assert found is not None and found.status == "cancelled"


def test_running_jobs_go_back_to_the_queue_until_their_attempts_are_used_up(store: Store) -> None:
    store.add(replace(JOB, status="running", started=1.0, attempts=1))
    store.add(replace(JOB, id="b" * 32, key=None, status="running", attempts=3))
    store.add(replace(JOB, id="c" * 32, key=None, status="done"))
    left = store.recover(3, POISON)
    assert [(job.id, job.status, job.started) for job in left] == [(JOB.id, "queued", None)]
    poisoned = store.get("b" * 32)
    assert poisoned is not None and poisoned.status == "failed" and poisoned.error == POISON
    assert store.counts() == {"queued": 1, "failed": 1, "done": 1}


def test_it_is_wal_with_full_sync_and_private(store: Store) -> None:
    assert store.path.stat().st_mode & 0o077 == 0
    with store._begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA user_version").scalar_one() == SCHEMA


def test_what_was_committed_survives_a_copy_taken_while_open(store: Store, tmp_path: Path) -> None:
    store.add(JOB)
    copy = tmp_path / "crashed"
    copy.mkdir()
    for file in tmp_path.glob("jobs.sqlite*"):  # as a power cut would leave them
        shutil.copy(file, copy / file.name)
    assert Store(copy / "jobs.sqlite").open().get(JOB.id) == JOB


def test_a_torn_wal_loses_no_more_than_the_last_commit(store: Store, tmp_path: Path) -> None:
    for number in range(20):
        store.add(replace(JOB, id=f"{number:032x}", key=None))
    copy = tmp_path / "torn"
    copy.mkdir()
    for file in tmp_path.glob("jobs.sqlite*"):
        shutil.copy(file, copy / file.name)
    wal = copy / "jobs.sqlite-wal"
    wal.write_bytes(wal.read_bytes()[:-100])
    assert store.counts()["queued"] - Store(copy / "jobs.sqlite").open().counts()["queued"] == 1


def test_a_newer_schema_is_refused(store: Store) -> None:
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        Store(store.path).open()


def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        Store(path).open()


def test_a_damaged_page_is_refused_in_one_sentence(store: Store) -> None:
    for number in range(50):
        store.add(replace(JOB, id=f"{number:032x}", key=None))
    store.close()
    content = store.path.read_bytes()
    store.path.write_bytes(content[:4096] + b"\x5a" * (len(content) - 4096))
    with pytest.raises(StoreError, match=r"damaged.*results that the store does not know are kept in jobs/.orphaned"):
        Store(store.path).open()


def test_a_row_that_cannot_be_read_is_refused_in_one_sentence(store: Store) -> None:
    store.add(JOB)
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE jobs SET images = '{'")
    connection.close()
    with pytest.raises(StoreError, match="damaged"):
        Store(store.path).open()


def test_a_locked_store_is_not_called_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilum_server.store.BUSY_SECONDS", 0.05)
    blocker = sqlite3.connect(store.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="is locked by another program; end that, then try again"):
        Store(store.path).open()
    blocker.close()


def test_where_no_gateway_ran_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"No gateway has run on {tmp_path / 'none'} yet"):
        Store(tmp_path / "none" / "jobs.sqlite").open()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "ä ö"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    Store(tmp_path / name / "jobs.sqlite").open().close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "jobs.sqlite").stat().st_size


def test_a_poisoned_job_ends_after_it_began(store: Store) -> None:
    later = time.time() + 7200
    store.add(replace(JOB, status="running", created=later, started=later, attempts=3))
    store.recover(3, POISON)
    ended = store.get(JOB.id)
    assert ended is not None and ended.ended == later


def test_a_writer_waits_for_another(store: Store) -> None:
    blocker = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: blocker.execute("COMMIT"))
    timer.start()
    assert store.add(JOB)[1]
    timer.join()
    blocker.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/y", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/scratch/z", "tmpfs"),
        ("/mnt/with space/z", "cifs"),
    ],
)
def test_the_longest_mount_point_names_the_file_system(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilum_server.store.file_system_of", lambda _path: "nfs4")
    with pytest.raises(StoreError, match="network file system"):
        Store(tmp_path / "jobs.sqlite").open()
    assert not list(tmp_path.iterdir())
