"""The start of the Triton image: turns TRITON_* variables into flags, then becomes tritonserver.

    TRITON_REPOSITORY   folder of models (/models)
    TRITON_VARIANT      which configs/<variant>.pbtxt of each model is used; empty: each model's config.pbtxt
    TRITON_ADDRESS      address to listen on (127.0.0.1); 0.0.0.0 only in a network that no user reaches
    TRITON_HTTP_PORT, TRITON_GRPC_PORT, TRITON_METRICS_PORT   ports (8000, 8001, 8002)
    TRITON_MAX_INPUT    largest HTTP body in bytes (1 MiB: windows come over gRPC)
    TRITON_CLIENT_SHM   true lets clients register shared memory; only where the gateway shares this container's IPC
    TRITON_CONTROL      none (default: what lies in the repository at the start) or explicit

Further arguments go to tritonserver as they are.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

OLDEST = (26, 3)
"""First release with the fixes that docs/deploy.md lists."""
RELEASE = "NVIDIA_TRITON_SERVER_VERSION"
"""Where NVIDIA's images say which release they are."""


class StartError(Exception):
    """A variable is wrong; the message names it and says what is allowed."""


def check_release(environment: Mapping[str, str]) -> None:
    """Refuse a release with known ways in.

    Raises:
        StartError: older than OLDEST, or not known.
    """
    text = environment.get(RELEASE, "")
    found = re.fullmatch(r"(\d\d)\.(\d\d)(\..*)?", text)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise StartError(f"Refused to start Triton {text or 'of an unknown release'}; use 26.03 or newer.")


def flags(environment: Mapping[str, str], secret: str) -> list[str]:
    """The command line of tritonserver, without its name.

    Args:
        environment: such as os.environ.
        secret: what a caller of a closed call would have to know; nobody is told.

    Raises:
        StartError: a variable has a value that is not allowed.
    """
    address = _one_of(environment, "TRITON_ADDRESS", "127.0.0.1", r"[0-9a-fA-F.:]+", "an IP address")
    shared = _one_of(environment, "TRITON_CLIENT_SHM", "false", r"true|false", "true or false")
    control = _one_of(environment, "TRITON_CONTROL", "none", r"none|explicit", "none or explicit")
    variant = _one_of(environment, "TRITON_VARIANT", "", r"[a-z0-9-]*", "a name such as onnxruntime-fp16")
    ports = {
        kind: _one_of(environment, f"TRITON_{kind.upper()}_PORT", default, r"\d{1,5}", "a port")
        for kind, default in (("http", "8000"), ("grpc", "8001"), ("metrics", "8002"))
    }
    largest = _one_of(environment, "TRITON_MAX_INPUT", str(2**20), r"[1-9]\d*", "a number of bytes")
    closed = ["trace", "logging"] if shared == "true" else ["trace", "logging", "shared-memory"]
    words = [
        f"--model-repository={environment.get('TRITON_REPOSITORY') or '/models'}",
        "--disable-auto-complete-config",
        f"--model-control-mode={control}",
        *(f"--{kind}-address={address}" for kind in ports),
        *(f"--{kind}-port={port}" for kind, port in ports.items()),
        f"--http-max-input-size={largest}",
        f"--allow-client-shm={shared}",
        # The gateway reads the index of models over gRPC; loading is refused there by the control mode.
        f"--http-restricted-api={','.join(dict.fromkeys([*closed, 'shared-memory', 'model-repository']))}"
        f":hilum-closed={secret}",
        f"--grpc-restricted-protocol={','.join(closed)}:hilum-closed={secret}",
        "--log-format=ISO8601",
    ]
    return [*words, f"--model-config-name={variant}"] if variant else words


def main(arguments: Sequence[str]) -> NoReturn:
    """Become tritonserver, or say why not."""
    try:
        check_release(os.environ)
        words = flags(os.environ, secrets.token_hex(32))
    except StartError as error:
        sys.exit(str(error))
    os.execvp("tritonserver", ["tritonserver", *words, *arguments])  # noqa: S606, S607 - the image's own server


def _one_of(environment: Mapping[str, str], name: str, default: str, allowed: str, words: str) -> str:
    value = environment.get(name) or default
    if re.fullmatch(allowed, value) is None:
        raise StartError(f"{name} must be {words}, not {value!r}.")
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
