"""The health check of both images: exit code 0 while the server in this container lives.

Usage: python healthy.py gateway | triton
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request
from collections.abc import Mapping

SECONDS = 4
"""Below the time-out of HEALTHCHECK, so that the reason reaches its log."""


def address(server: str, environment: Mapping[str, str]) -> str:
    """What to ask: the gateway's liveness, or whether Triton can answer."""
    if server == "triton":
        return f"http://127.0.0.1:{environment.get('TRITON_HTTP_PORT') or '8000'}/v2/health/ready"
    scheme = "https" if environment.get("HILUM_TLS_CERT") else "http"
    return f"{scheme}://127.0.0.1:{environment.get('HILUM_PORT') or '8000'}/healthz"


def main(arguments: list[str]) -> int:
    """Ask once; 0 or 1."""
    trusting = ssl.create_default_context()
    trusting.check_hostname = False  # the certificate names the host that callers use, not this loopback
    trusting.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))
    try:
        with opener.open(address(arguments[0], os.environ), timeout=SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
