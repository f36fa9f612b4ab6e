"""Who may come in: users with passwords and API keys, hashed at rest in ``accounts.json`` of the data folder."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hilum_inference.errors import HilumError
from hilum_inference.files import write_atomically
from hilum_server.problems import ProblemError
from hilum_server.settings import Settings, is_loopback

Role = Literal["admin", "user"]
ROLES: tuple[Role, ...] = ("admin", "user")
FILE_NAME = "accounts.json"
KEY_PREFIX = "hilum_"
SCRYPT = {"n": 2**14, "r": 8, "p": 1}
REMEMBERED = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class AccountError(HilumError):
    """An account command cannot be done; one sentence says why."""

    code = "bad_account"


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: owner of what they upload and submit.
        role: an ``admin`` sees everyone's volumes and jobs and the metrics.
    """

    name: str
    role: Role = "user"

    @property
    def sees(self) -> str | None:
        """The owner whose things they see; None is everyone's."""
        return None if self.role == "admin" else self.name


LOCAL = Principal("local", "admin")
"""Anyone on this machine where no login is needed."""
TRUSTED = Principal("trusted")
"""Anyone of a trusted network who shows no key."""
RESERVED = frozenset({LOCAL.name, TRUSTED.name})
"""Names no account may have: it would share what belongs to those who come without a login."""


@dataclass
class Accounts:
    """The users and keys of a data folder; read again when the file changed."""

    data: Path
    _stamp: tuple[int, int] = (0, 0)
    _content: dict[str, Any] = field(default_factory=lambda: {"users": {}, "keys": {}})

    @property
    def path(self) -> Path:
        """Where they are kept."""
        return self.data / FILE_NAME

    def content(self) -> dict[str, Any]:
        """Users by name, keys by id.

        Raises:
            AccountError: the file is damaged.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._stamp, self._content = (0, 0), {"users": {}, "keys": {}}
            return self._content
        if (status.st_mtime_ns, status.st_ino) != self._stamp:
            try:
                self._content = json.loads(self.path.read_bytes())
            except ValueError as error:
                raise AccountError(
                    f"{self.path} is damaged; restore it or remove it and add the users again."
                ) from error
            self._stamp = (status.st_mtime_ns, status.st_ino)
        return self._content

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes when the file changes."""
        return self._stamp

    def empty(self) -> bool:
        """Whether there is neither a user nor a key."""
        content = self.content()
        return not content["users"] and not content["keys"]

    def add_user(self, name: str, password: str, role: Role) -> None:
        """Add a user or change their password and role."""
        _check_name(name)
        if len(password) < 8:
            raise AccountError("A password needs at least 8 characters.")
        salt = secrets.token_bytes(16)
        user = {"role": role, "salt": salt.hex(), "hash": _scrypt(password, salt).hex(), "created": int(time.time())}
        with self._alone() as content:
            self._write({**content, "users": {**content["users"], name: user}})

    def remove_user(self, name: str) -> None:
        """Remove a user and the keys made for them."""
        with self._alone() as content:
            if name not in content["users"]:
                raise AccountError(f"There is no user {name!r}; `hilum user list` shows them.")
            users = {known: user for known, user in content["users"].items() if known != name}
            keys = {key_id: key for key_id, key in content["keys"].items() if key["owner"] != name}
            self._write({"users": users, "keys": keys})

    def new_key(self, owner: str, role: Role) -> tuple[str, str]:
        """A new key for ``owner``: its id and the secret, which is shown once and kept only as a hash."""
        _check_name(owner)
        key_id, secret = secrets.token_hex(4), KEY_PREFIX + secrets.token_urlsafe(32)
        key = {"owner": owner, "role": role, "hash": _sha256(secret), "created": int(time.time())}
        with self._alone() as content:
            self._write({**content, "keys": {**content["keys"], key_id: key}})
        return key_id, secret

    def remove_key(self, key_id: str) -> None:
        """Remove a key by its id."""
        with self._alone() as content:
            if key_id not in content["keys"]:
                raise AccountError(f"There is no key {key_id!r}; `hilum key list` shows them.")
            keys = {known: key for known, key in content["keys"].items() if known != key_id}
            self._write({**content, "keys": keys})

    def of_key(self, secret: str) -> Principal | None:
        """Who holds this key."""
        digest = _sha256(secret)
        found = [key for key in self.content()["keys"].values() if hmac.compare_digest(key["hash"], digest)]
        return _unless_reserved(Principal(found[0]["owner"], found[0]["role"])) if found else None

    def of_password(self, name: str, password: str) -> Principal | None:
        """Who has this name and password; takes as long for an unknown name."""
        user = self.content()["users"].get(name)
        salt = bytes.fromhex(user["salt"]) if user else bytes(16)
        digest = _scrypt(password, salt)
        if user is None or not hmac.compare_digest(digest, bytes.fromhex(user["hash"])):
            return None
        return _unless_reserved(Principal(name, user["role"]))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[dict[str, Any]]:
        """What the file says, while nobody else changes it: a command must not write over another's change."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _held(self.data):
            self._stamp = (0, 0)
            yield self.content()

    def _write(self, content: Mapping[str, Any]) -> None:
        write_atomically(self.path, json.dumps(content, indent=1).encode())
        self.path.chmod(0o600)


class Doorkeeper:
    """Tells who asks from an Authorization header or the network they ask from."""

    def __init__(self, settings: Settings, accounts: Accounts) -> None:
        self._needs_login = settings.needs_login
        self._networks = settings.auth.trusted_networks
        self._accounts = accounts
        self._secret = secrets.token_bytes(16)
        self._known: dict[bytes, Principal] = {}
        self._stamp: tuple[int, int] = (0, 0)
        self._passwords = asyncio.Semaphore(2)  # scrypt takes 16 MiB and 50 ms: two at a time at most

    async def admit(self, authorization: str | None, client: str | None) -> Principal:
        """Who asks.

        Raises:
            ProblemError: 401.
        """
        if authorization is not None and (self._needs_login or not self._accounts.empty()):
            return await self._by_header(authorization)
        if not self._needs_login:
            return LOCAL
        if client is not None and self._trusted(client):
            return TRUSTED
        raise _unauthorized("This gateway needs a login: send an API key as Bearer token, or a user and password.")

    async def _by_header(self, authorization: str) -> Principal:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "bearer":
            principal = self._accounts.of_key(rest.strip())
        elif scheme.lower() == "basic":
            principal = await self._by_password(rest.strip())
        else:
            raise _unauthorized("Only Bearer and Basic authorization are known.")
        if principal is None:
            raise _unauthorized("The key, or the user and password, is not valid.")
        return principal

    async def _by_password(self, encoded: str) -> Principal | None:
        self._accounts.content()
        if self._accounts.stamp != self._stamp:
            self._known.clear()
            self._stamp = self._accounts.stamp
        seen = hmac.digest(self._secret, encoded.encode(), "sha256")
        if seen in self._known:
            return self._known[seen]
        try:
            name, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:  # no base64, or no UTF-8 in it
            return None
        async with self._passwords:
            principal = await asyncio.to_thread(self._accounts.of_password, name, password)
        if principal is not None:
            while len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[seen] = principal
        return principal

    def _trusted(self, client: str) -> bool:
        try:
            address = ipaddress.ip_address(client)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._networks)


def check_exposure(settings: Settings, accounts: Accounts) -> None:
    """Refuse to listen where strangers could come in.

    Raises:
        AccountError: beyond loopback, or with a login demanded, and no user or key exists.
    """
    if settings.needs_login and accounts.empty():
        where = (
            "with a login" if is_loopback(settings.server.host) else f"on {settings.server.host}, beyond this machine,"
        )
        raise AccountError(
            f"Refused to serve {where} without users or keys; first add one with `hilum user add NAME` "
            "or `hilum key new`."
        )


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, "unauthorized", detail, {"WWW-Authenticate": 'Basic realm="hilum", Bearer'})


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise AccountError(f"The name {name!r} is not allowed; use 1-64 letters, digits, '.', '_', '@', '-'.")
    if name in RESERVED:
        raise AccountError(f"The name {name!r} stands for those who come without a login; choose another.")


def _unless_reserved(principal: Principal) -> Principal | None:
    """None for an account of a reserved name, as an earlier release let it be made."""
    return None if principal.name in RESERVED else principal


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a folder while its accounts are changed; others wait. The system frees it when the process dies.

    Windows and some network file systems cannot; there it is not held.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, **SCRYPT)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def describe_users(accounts: Accounts) -> Sequence[tuple[str, str]]:
    """Name and role of each user."""
    return [(name, user["role"]) for name, user in sorted(accounts.content()["users"].items())]


def describe_keys(accounts: Accounts) -> Sequence[tuple[str, str, str, int]]:
    """Id, owner, role and creation of each key."""
    keys = accounts.content()["keys"].items()
    return [(key_id, key["owner"], key["role"], key["created"]) for key_id, key in sorted(keys)]
