"""Settings of a gateway: frozen, read once from the environment and the command line, passed down."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.networks import IPvAnyNetwork

from hilum_inference.errors import HilumError, ModelError

PREFIX = "HILUM_"
"""A field ``port`` is read from the environment as ``HILUM_PORT``."""

GIB = 1024**3
MOST_GIB = 1024**2
"""Beyond any machine, and still a number of bytes."""


class SettingsError(HilumError):
    """A setting is wrong; the message names it and says what is allowed."""

    code = "bad_settings"


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServerSettings(_Group):
    """Where the gateway listens and how much it takes at once."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    wait_seconds: float = Field(default=2.0, ge=0, le=60)
    grace_seconds: float = Field(default=20.0, ge=0, le=3600)
    header_seconds: float = Field(default=15.0, gt=0)
    slowest_upload: int = Field(default=1024, ge=0)
    max_requests: int = Field(default=256, ge=1)
    queue: int = Field(default=256, ge=1)
    queue_per_user: int = Field(default=64, ge=1)
    attempts: int = Field(default=3, ge=1, le=100)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class InferenceSettings(_Group):
    """What runs the networks."""

    threads: int = Field(default=0, ge=0, le=1024)
    memory_gib: float | None = Field(default=None, gt=0, le=MOST_GIB)
    triton: str | None = Field(default=None, pattern=r"^[^/\s]+:\d+$")
    triton_seconds: float = Field(default=120.0, gt=0)
    triton_patience: float = Field(default=30.0, ge=0)
    variant: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")


class StorageSettings(_Group):
    """Where data lies and how long."""

    data: Path = Path("~/.local/share/hilum")
    repository: tuple[Path, ...] = ()
    signed_by: Path | None = None
    max_upload_gib: float = Field(default=2.0, gt=0, le=MOST_GIB)
    max_voxels: int = Field(default=1_100_000_000, ge=1)
    keep_hours: float | None = Field(default=None, gt=0)
    reserve_mib: int = Field(default=256, ge=0)

    @field_validator("data", "signed_by")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("repository")
    @classmethod
    def _all_absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(folder.expanduser().absolute() for folder in value)

    @property
    def max_upload(self) -> int:
        """Largest upload in bytes."""
        return int(self.max_upload_gib * GIB)


class AuthSettings(_Group):
    """Who may come in."""

    login: bool | None = None
    trusted_networks: tuple[IPvAnyNetwork, ...] = ()
    hosts: tuple[str, ...] = ()


class Settings(_Group):
    """All settings of one gateway."""

    server: ServerSettings = ServerSettings()
    inference: InferenceSettings = InferenceSettings()
    storage: StorageSettings = StorageSettings()
    auth: AuthSettings = AuthSettings()

    @property
    def needs_login(self) -> bool:
        """Whether callers must show who they are: by default everywhere but on loopback."""
        if self.auth.login is not None and is_loopback(self.server.host):
            return self.auth.login
        return not is_loopback(self.server.host)


GROUPS: Mapping[str, type[_Group]] = {
    "server": ServerSettings,
    "inference": InferenceSettings,
    "storage": StorageSettings,
    "auth": AuthSettings,
}

Environment = Annotated[Mapping[str, str], "such as os.environ"]


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_repository(settings: Settings) -> None:
    """Look for the folders of models, before anything starts.

    Raises:
        SettingsError: one that is named is not there: a mistyped name would be a gateway without models.
    """
    for folder in settings.storage.repository:
        if not folder.is_dir():
            raise SettingsError(
                f"HILUM_REPOSITORY (--repository) names {folder}, which is no folder; make it, or name another."
            )


def check_signed_by(settings: Settings) -> None:
    """Read the key of the models' signatures once, before anything starts.

    Raises:
        SettingsError: it is no key, or the models' files are not at hand.
    """
    key = settings.storage.signed_by
    if key is None:
        return
    if settings.inference.triton is not None and not settings.storage.repository:
        raise SettingsError("HILUM_SIGNED_BY looks at the files of Triton's models; name them with HILUM_REPOSITORY.")
    from hilum_inference.signed import check_key

    try:
        check_key(key)
    except ModelError as error:
        raise SettingsError(f"HILUM_SIGNED_BY: {error.message}") from error


def check_tls(server: ServerSettings) -> None:
    """Load the certificate and its key once, before anything starts.

    Raises:
        SettingsError: one without the other, unreadable, or no pair.
    """
    if server.tls_cert is None and server.tls_key is None:
        return
    if server.tls_cert is None or server.tls_key is None:
        raise SettingsError("HILUM_TLS_CERT and HILUM_TLS_KEY belong together; set both or neither.")
    import ssl

    for name, path in (("HILUM_TLS_CERT", server.tls_cert), ("HILUM_TLS_KEY", server.tls_key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise SettingsError(f"{name} names a file that cannot be read ({error.strerror}): {path}.") from error
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.tls_cert, server.tls_key, password=lambda: b"")  # never ask at the terminal
    except (OSError, ValueError) as error:
        raise SettingsError(
            "HILUM_TLS_CERT and HILUM_TLS_KEY must be a certificate and its private key without a password, both PEM."
        ) from error


def _parts(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def read_settings(environment: Environment, **flags: Any) -> Settings:
    """Settings from ``HILUM_*`` variables; ``flags`` that are not None win over them.

    Raises:
        SettingsError: unknown or wrong value; one sentence naming the variable.
    """
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for group, kind in GROUPS.items():
        for name, field in kind.model_fields.items():
            text = environment.get(PREFIX + name.upper())
            if flags.get(name) is not None:
                groups[group][name] = flags[name]
            elif text:
                groups[group][name] = _parts(text) if "tuple" in str(field.annotation) else text
    try:
        return Settings.model_validate(groups)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][1]) if len(first["loc"]) > 1 else "settings"
        raise SettingsError(f"The setting {PREFIX}{name.upper()} is not valid: {first['msg']}.") from error
