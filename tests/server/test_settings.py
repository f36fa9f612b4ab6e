"""Settings: frozen, few, documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from hilum_server.settings import (
    GROUPS,
    PREFIX,
    Settings,
    SettingsError,
    check_repository,
    check_tls,
    is_loopback,
    read_settings,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_each_setting_is_documented_with_its_default() -> None:
    text = DOCUMENT.read_text()
    for group in GROUPS.values():
        for name in group.model_fields:
            assert f"`{PREFIX}{name.upper()}`" in text, f"{name} is missing in docs/settings.md"


def test_no_setting_is_documented_that_does_not_exist() -> None:
    import re

    known = {f"{PREFIX}{name.upper()}" for group in GROUPS.values() for name in group.model_fields}
    assert set(re.findall(rf"^\| `({PREFIX}\w+)`", DOCUMENT.read_text(), re.MULTILINE)) == known


def test_groups_are_small_and_names_unique() -> None:
    names = [name for group in GROUPS.values() for name in group.model_fields]
    assert len(set(names)) == len(names)
    assert all(len(group.model_fields) <= 15 for group in GROUPS.values())


def test_flags_win_over_the_environment() -> None:
    settings = read_settings({"HILUM_PORT": "9000", "HILUM_QUEUE": "5"}, port=9001, host=None)
    assert (settings.server.port, settings.server.queue, settings.server.host) == (9001, 5, "127.0.0.1")


def test_lists_are_separated_by_commas() -> None:
    settings = read_settings({"HILUM_REPOSITORY": "/a,/b", "HILUM_TRUSTED_NETWORKS": "10.0.0.0/8,fd00::/8"})
    assert settings.storage.repository == (Path("/a"), Path("/b"))
    assert [str(network) for network in settings.auth.trusted_networks] == ["10.0.0.0/8", "fd00::/8"]


def test_blanks_beside_a_comma_are_no_part_of_a_name() -> None:
    settings = read_settings({"HILUM_REPOSITORY": "/a, /b ,", "HILUM_HOSTS": " gw.example, gw2.example"})
    assert settings.storage.repository == (Path("/a"), Path("/b"))
    assert settings.auth.hosts == ("gw.example", "gw2.example")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e300"])
@pytest.mark.parametrize("name", ["HILUM_MEMORY_GIB", "HILUM_MAX_UPLOAD_GIB"])
def test_sizes_are_finite(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not valid"):
        read_settings({name: value})


@pytest.mark.parametrize("name", ["HILUM_KEEP_HOURS", "HILUM_HEADER_SECONDS", "HILUM_TRITON_SECONDS"])
def test_times_are_finite(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not valid: Input should be a finite number"):
        read_settings({name: "inf"})


def test_a_wrong_value_is_named_in_one_sentence() -> None:
    with pytest.raises(SettingsError, match="HILUM_PORT is not valid"):
        read_settings({"HILUM_PORT": "many"})


def test_a_variant_is_a_plain_name() -> None:
    assert read_settings({"HILUM_VARIANT": "python-int8"}).inference.variant == "python-int8"
    with pytest.raises(SettingsError, match="HILUM_VARIANT is not valid"):
        read_settings({}, variant="../python-int8")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "login", "needed"),
    [("127.0.0.1", None, False), ("127.0.0.1", True, True), ("0.0.0.0", None, True), ("0.0.0.0", False, True)],
)
def test_a_login_can_be_demanded_but_not_dropped_beyond_loopback(host: str, login: bool | None, needed: bool) -> None:
    settings = Settings.model_validate({"server": {"host": host}, "auth": {"login": login}})
    assert settings.needs_login is needed


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_a_certificate_and_its_key_belong_together(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("no certificate")
    cases: dict[str, dict[str, str]] = {
        "set both or neither": {"HILUM_TLS_CERT": str(file)},
        "HILUM_TLS_KEY names a file that cannot be read": {
            "HILUM_TLS_CERT": str(file),
            "HILUM_TLS_KEY": str(tmp_path / "none.pem"),
        },
        "both PEM": {"HILUM_TLS_CERT": str(file), "HILUM_TLS_KEY": str(file)},
    }
    for text, environment in cases.items():
        with pytest.raises(SettingsError, match=text):
            check_tls(read_settings(environment).server)
    check_tls(Settings().server)


def test_folders_of_models_are_there(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    check_repository(read_settings({"HILUM_REPOSITORY": str(tmp_path / "models")}))
    with pytest.raises(SettingsError, match=r"names .*mistyped, which is no folder"):
        check_repository(read_settings({"HILUM_REPOSITORY": f"{tmp_path / 'models'}, {tmp_path / 'mistyped'}"}))
