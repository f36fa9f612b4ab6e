"""The server room's verbs: serve, jobs, user, key."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from hilum_server.auth import Accounts

serve_app = typer.Typer(add_completion=False, rich_markup_mode=None)
user_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Users of a gateway.")
key_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Keys for programs.")
jobs_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Jobs of a gateway.")

Data = Annotated[Path | None, typer.Option(help="Data folder (default ~/.local/share/hilum).")]
RoleOption = Annotated[Literal["admin", "user"], typer.Option(help="An admin sees everyone's jobs.")]
Server = Annotated[str | None, typer.Option(help="Address of a running gateway; else the data folder's own store.")]
ApiKey = Annotated[str | None, typer.Option("--key", help="API key for --server.")]


@serve_app.command(epilog="Example: hilum serve --port 8080 --repository ./model_repository")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port (default 8000; 0 takes a free one).")] = None,
    repository: Annotated[list[Path] | None, typer.Option(help="Model folder; repeat for several.")] = None,
    data: Data = None,
    worker_threads: Annotated[int | None, typer.Option(help="Threads of the engine (default: all cores).")] = None,
    triton: Annotated[
        str | None, typer.Option(help="host:port of a Triton's gRPC endpoint that runs the networks.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of the models, such as python-int8.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate file (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
) -> None:
    """Start the gateway. Beyond this machine it refuses to start without users or keys."""
    from hilum_server.settings import read_settings

    flags = {"host": host, "port": port, "data": data, "threads": worker_threads, "triton": triton, "variant": variant}
    folders = tuple(repository) if repository else None
    _serve(read_settings(os.environ, **flags, repository=folders, tls_cert=tls_cert, tls_key=tls_key))


def _serve(settings: Any) -> None:
    from hilum_server.logs import set_up
    from hilum_server.start import start

    set_up(settings.server.log_level)
    os.umask(0o077)  # volumes and masks are for the user who runs the gateway
    started = start(settings)
    try:  # only now: the worker loads its engine while this process imports its own
        from hilum_server.app import create_app
        from hilum_server.serve import listen, run, url_of

        listener = listen(settings.server)
        app = create_app(settings, started)
        typer.echo(f"Hilum listens at {url_of(settings, listener)} (Ctrl-C ends it).")
        sys.stdout.flush()
        run(app, settings, listener)
    finally:
        started.close()


@user_app.command("add", epilog="Example: hilum user add anna --role admin")
def user_add(
    name: Annotated[str, typer.Argument(help="Who.")],
    role: RoleOption = "user",
    password: Annotated[
        str | None, typer.Option(help="Asked for where not given; '-' reads it from standard input.")
    ] = None,
    data: Data = None,
) -> None:
    """Add a user, or change their password and role."""
    if password == "-":  # noqa: S105 - the sign for standard input
        password = sys.stdin.readline().rstrip("\r\n")
    elif password is None:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    _accounts(data).add_user(name, str(password), role)
    typer.echo(f"User {name} ({role}) may log in.")


@user_app.command("list", epilog="Example: hilum user list")
def user_list(data: Data = None) -> None:
    """List the users and their roles."""
    from hilum_server.auth import describe_users

    for name, role in describe_users(_accounts(data)):
        typer.echo(f"{name}\t{role}")


@user_app.command("remove", epilog="Example: hilum user remove anna")
def user_remove(name: Annotated[str, typer.Argument(help="Who.")], data: Data = None) -> None:
    """Remove a user and the keys made for them."""
    _accounts(data).remove_user(name)
    typer.echo(f"User {name} is removed.")


@key_app.command("new", epilog="Example: hilum key new --owner slicer-room-2")
def key_new(
    owner: Annotated[str, typer.Option(help="Whose volumes and jobs it works with.")] = "program",
    role: RoleOption = "user",
    data: Data = None,
) -> None:
    """Make a key and show it once; only a hash of it is kept."""
    key_id, secret = _accounts(data).new_key(owner, role)
    typer.echo(f"Key {key_id} of {owner} ({role}); it is shown this once:", err=True)
    typer.echo(secret)


@key_app.command("list", epilog="Example: hilum key list")
def key_list(data: Data = None) -> None:
    """List the keys: id, owner, role."""
    from hilum_server.auth import describe_keys

    for key_id, owner, role, _ in describe_keys(_accounts(data)):
        typer.echo(f"{key_id}\t{owner}\t{role}")


@key_app.command("remove", epilog="Example: hilum key remove 1a2b3c4d")
def key_remove(key_id: Annotated[str, typer.Argument(help="As `hilum key list` shows it.")], data: Data = None) -> None:
    """Remove a key; programs that use it are locked out at once."""
    _accounts(data).remove_key(key_id)
    typer.echo(f"Key {key_id} is removed.")


JobId = Annotated[str, typer.Argument(help="As `hilum jobs list` shows it.")]


@jobs_app.command("list", epilog="Example: hilum jobs list --server http://127.0.0.1:8000")
def jobs_list(server: Server = None, key: ApiKey = None, data: Data = None) -> None:
    """List jobs, the newest first: id, status, model, priority, attempts, error code."""
    from hilum_server.desk import desk

    with desk(server, key, _folder(data), change=False) as jobs:
        for job in jobs.list():
            error = job["error"]["code"] if job["error"] else "-"
            model = f"{job['model']}:{job['version']}"
            typer.echo("\t".join((job["id"], job["status"], model, job["priority"], str(job["attempts"]), error)))


@jobs_app.command("cancel", epilog="Example: hilum jobs cancel 7e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b")
def jobs_cancel(job: JobId, server: Server = None, key: ApiKey = None, data: Data = None) -> None:
    """Cancel a queued or running job."""
    _act("cancel", job, server, key, data)


@jobs_app.command("retry", epilog="Example: hilum jobs retry 7e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b")
def jobs_retry(job: JobId, server: Server = None, key: ApiKey = None, data: Data = None) -> None:
    """Queue a failed or cancelled job again."""
    _act("retry", job, server, key, data)


@jobs_app.command("delete", epilog="Example: hilum jobs delete 7e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b")
def jobs_delete(job: JobId, server: Server = None, key: ApiKey = None, data: Data = None) -> None:
    """Forget a finished job and its mask."""
    _act("delete", job, server, key, data)


def _act(verb: str, job: str, server: str | None, key: str | None, data: Path | None) -> None:
    from hilum_server.desk import desk

    with desk(server, key, _folder(data)) as jobs:
        typer.echo(f"Job {job}: {jobs.act(verb, job)}.")


def _folder(data: Path | None) -> Path:
    from hilum_server.settings import read_settings

    return read_settings(os.environ, data=data).storage.data


def _accounts(data: Path | None) -> Accounts:
    from hilum_server.auth import Accounts

    return Accounts(_folder(data))
