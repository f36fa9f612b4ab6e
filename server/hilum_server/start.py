"""What must exist before anything else of a gateway: the hold on its data folder, and its worker process.

Kept free of FastAPI, so that the worker loads its engine while the gateway still imports.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from hilum_server.auth import Accounts, check_exposure
from hilum_server.datastore import hold
from hilum_server.link import WorkerLink
from hilum_server.settings import GIB, Settings, check_repository, check_signed_by, check_tls


@dataclass(frozen=True)
class Started:
    """Processes and handles of a gateway that is about to serve."""

    settings: Settings
    accounts: Accounts
    link: WorkerLink
    lock: int

    def close(self) -> None:
        """End the processes, then give the data folder back."""
        self.link.end()
        os.close(self.lock)


def start(settings: Settings, worker: Sequence[str] = ()) -> Started:
    """Take hold of the data folder and start the worker.

    Args:
        settings: of the gateway.
        worker: command of another worker than this package's own.

    Raises:
        SettingsError: its certificate, the key of its models' signatures or a folder of models cannot be used.
        AccountError: it would listen beyond this machine without users or keys.
        DataFolderError: the data folder cannot be used.
    """
    check_tls(settings.server)
    check_signed_by(settings)
    check_repository(settings)
    accounts = Accounts(settings.storage.data)
    check_exposure(settings, accounts)
    lock = hold(settings.storage.data)
    link = WorkerLink(worker, _config(settings)) if worker else WorkerLink.of_module(_config(settings))
    link.spawn()
    return Started(settings, accounts, link, lock)


def _config(settings: Settings) -> dict[str, object]:
    inference = settings.inference
    return {
        "repositories": [str(folder) for folder in settings.storage.repository],
        "data": str(settings.storage.data),
        "threads": inference.threads,
        "memory": None if inference.memory_gib is None else int(inference.memory_gib * GIB),
        "triton": inference.triton,
        "triton_seconds": inference.triton_seconds,
        "triton_patience": inference.triton_patience,
        "variant": inference.variant,
        "signed_by": None if settings.storage.signed_by is None else str(settings.storage.signed_by),
    }
