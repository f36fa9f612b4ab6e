"""Users, keys and the doorkeeper."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hilum_server.auth import (
    LOCAL,
    RESERVED,
    AccountError,
    Accounts,
    Doorkeeper,
    Principal,
    check_exposure,
    describe_keys,
    describe_users,
)
from hilum_server.problems import ProblemError
from hilum_server.settings import Settings


def settings(host: str = "0.0.0.0", **auth: Any) -> Settings:
    return Settings.model_validate({"server": {"host": host}, "auth": auth})


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def accounts(tmp_path: Path) -> Accounts:
    made = Accounts(tmp_path)
    made.add_user("anna", "correct horse", "admin")
    made.add_user("ben", "battery staple", "user")
    return made


def test_nothing_secret_is_on_the_disk(accounts: Accounts) -> None:
    _, secret = accounts.new_key("ben", "user")
    text = accounts.path.read_text()
    assert "correct horse" not in text and secret not in text
    assert accounts.path.stat().st_mode & 0o077 == 0


async def test_who_comes_with_a_key_or_a_password(accounts: Accounts) -> None:
    _, secret = accounts.new_key("slicer", "user")
    keeper = Doorkeeper(settings(), accounts)
    assert await keeper.admit(f"Bearer {secret}", "10.0.0.1") == Principal("slicer", "user")
    for _ in range(2):  # the second time from memory
        assert await keeper.admit(basic("anna", "correct horse"), None) == Principal("anna", "admin")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "Bearer",
        "Bearer hilum_wrong",
        "Basic",
        "Basic ###",
        "Basic \xe9",
        "Basic /w==",
        "Bearer \xe9",
        basic("anna", "wrong"),
        basic("nobody", "correct horse"),
        basic("anna", ""),
        "Digest x",
    ],
)
async def test_others_are_turned_away(accounts: Accounts, header: str | None) -> None:
    with pytest.raises(ProblemError) as caught:
        await Doorkeeper(settings(), accounts).admit(header, "10.0.0.1")
    assert caught.value.status == 401 and "WWW-Authenticate" in caught.value.headers


async def test_a_removed_user_is_out_at_once(accounts: Accounts) -> None:
    keeper = Doorkeeper(settings(), accounts)
    _, secret = accounts.new_key("ben", "user")
    await keeper.admit(basic("ben", "battery staple"), None)
    Accounts(accounts.data).remove_user("ben")  # by another process
    for header in (basic("ben", "battery staple"), f"Bearer {secret}"):
        with pytest.raises(ProblemError):
            await keeper.admit(header, None)


async def test_loopback_needs_no_login_but_a_wrong_key_is_still_wrong(accounts: Accounts, tmp_path: Path) -> None:
    keeper = Doorkeeper(settings("127.0.0.1"), accounts)
    assert await keeper.admit(None, "127.0.0.1") == LOCAL
    with pytest.raises(ProblemError):
        await keeper.admit("Bearer wrong", "127.0.0.1")
    without = Doorkeeper(settings("127.0.0.1"), Accounts(tmp_path / "none"))
    assert await without.admit("Bearer anything", "127.0.0.1") == LOCAL


async def test_trusted_networks_send_no_token(accounts: Accounts) -> None:
    keeper = Doorkeeper(settings(trusted_networks=["10.1.0.0/16"]), accounts)
    assert await keeper.admit(None, "10.1.2.3") == Principal("trusted", "user")
    assert (await keeper.admit(None, "::ffff:10.1.2.3")).name == "trusted"
    for stranger in ("10.2.0.1", None, "nonsense"):
        with pytest.raises(ProblemError):
            await keeper.admit(None, stranger)


def test_beyond_loopback_accounts_are_a_must(tmp_path: Path, accounts: Accounts) -> None:
    empty = Accounts(tmp_path / "none")
    for exposed in (settings("0.0.0.0"), settings("::"), settings("127.0.0.1", login=True)):
        with pytest.raises(AccountError, match="without users or keys"):
            check_exposure(exposed, empty)
        check_exposure(exposed, accounts)
    check_exposure(settings("127.0.0.1"), empty)


def test_lists_and_removals(accounts: Accounts) -> None:
    key_id, _ = accounts.new_key("program", "user")
    assert describe_users(accounts) == [("anna", "admin"), ("ben", "user")]
    assert [key[:3] for key in describe_keys(accounts)] == [(key_id, "program", "user")]
    accounts.remove_key(key_id)
    assert not describe_keys(accounts)
    with pytest.raises(AccountError, match="no key"):
        accounts.remove_key(key_id)
    with pytest.raises(AccountError, match="no user"):
        accounts.remove_user("carl")


def test_commands_at_once_undo_nothing_of_each_other(accounts: Accounts) -> None:
    stolen, _ = accounts.new_key("stolen", "user")
    made: list[str] = []

    def make(number: int) -> None:
        made.append(Accounts(accounts.data).new_key(f"room-{number}", "user")[0])

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    threads.insert(4, threading.Thread(target=Accounts(accounts.data).remove_key, args=(stolen,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key[0] for key in describe_keys(accounts)) == sorted(made) and len(made) == 8


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_nobody_takes_the_name_of_those_who_come_without_a_login(accounts: Accounts, name: str) -> None:
    for add in (accounts.new_key, lambda owner, role: accounts.add_user(owner, "long enough", role)):
        with pytest.raises(AccountError, match="choose another"):
            add(name, "user")


@pytest.mark.parametrize("name", sorted(RESERVED))
async def test_an_account_of_such_a_name_opens_nothing_and_can_be_removed(accounts: Accounts, name: str) -> None:
    _, secret = accounts.new_key("ben", "user")
    accounts.path.write_text(accounts.path.read_text().replace('"ben"', f'"{name}"'))  # as an earlier release took it
    keeper = Doorkeeper(settings(), accounts)
    for header in (f"Bearer {secret}", basic(name, "battery staple")):
        with pytest.raises(ProblemError, match="not valid"):
            await keeper.admit(header, None)
    accounts.remove_user(name)
    assert describe_users(accounts) == [("anna", "admin")] and not describe_keys(accounts)


@pytest.mark.parametrize(
    ("name", "password"), [("a b", "long enough"), ("", "long enough"), ("x:y", "long enough"), ("ok", "short")]
)
def test_unsuitable_names_and_passwords(tmp_path: Path, name: str, password: str) -> None:
    with pytest.raises(AccountError):
        Accounts(tmp_path).add_user(name, password, "user")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_locks_everyone_out(accounts: Accounts) -> None:
    accounts.path.write_text(json.dumps({"users": {}})[:-3])
    with pytest.raises(AccountError, match="damaged"):
        Accounts(accounts.data).empty()
