"""The ``hilum`` command: a table of verbs, each resolved only when it is used, so that ``--help`` costs nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from hilum_client.errors import MissingExtra, told
from hilum_client.extras import load, missing


class Verb(NamedTuple):
    """Where a verb lives (``package.module:app``), the extra of the wheel it needs, and its line of help."""

    target: str
    extra: str | None
    help: str


GROUPS: Final[dict[str, dict[str, Verb]]] = {
    "Segment": {
        "demo": Verb(
            "hilum_client.demo:app", "serve,dicom", "Segment a real CT through the gateway and show the result"
        ),
        "segment": Verb("hilum_client.segment:app", None, "Segment volumes, in this process or on a server"),
        "batch": Verb("hilum_client.batch:app", None, "Segment a folder of volumes; resumable, with a report"),
        "models": Verb("hilum_client.models:app", None, "List models, or roll one back"),
        "doctor": Verb("hilum_client.doctor:app", None, "Check the installation and say what to do"),
    },
    "Serve": {
        "serve": Verb("hilum_server.cli:serve_app", "serve", "Start the gateway"),
        "jobs": Verb("hilum_server.cli:jobs_app", "serve", "List and steer the gateway's jobs"),
        "user": Verb("hilum_server.cli:user_app", "serve", "Add, list and remove users"),
        "key": Verb("hilum_server.cli:key_app", "serve", "Make keys for programs"),
        "triton": Verb("hilum_inference.triton_cli:triton_app", "inference", "Start a Triton for development"),
    },
    "Make a model": {
        "search": Verb("hilum_search.search_cli:search_app", "search", "Search networks: V-NAS, C2FNAS, their spaces"),
        "plan": Verb("hilum_search.plan_cli:plan_app", "search", "Check labelled volumes and plan a recipe for them"),
        "train": Verb("hilum_search.train_cli:train_app", "search", "Train a network on labelled volumes"),
        "evaluate": Verb("hilum_search.evaluate_cli:evaluate_app", "search", "Score a model on labelled volumes"),
        "export": Verb("hilum_export.cli:export_app", "export", "Write a trained network into a model repository"),
        "import": Verb("hilum_export.import_cli:import_app", "export", "Take over a model of MONAI or nnU-Net"),
        "verify": Verb("hilum_export.cli:verify_app", "export", "Check a published model again"),
        "build-engine": Verb(
            "hilum_export.engine_cli:build_engine_app", "export", "Build a TensorRT plan, on the machine with the GPU"
        ),
        "sign": Verb("hilum_inference.sign_cli:sign_app", "signing", "Sign a published model, or check its signature"),
    },
    "Measure": {
        "benchmark": Verb(
            "hilum_benchmark.cli:benchmark_app", "benchmark", "Measure speed and memory beside the peers"
        ),
    },
}
VERBS: Final[dict[str, Verb]] = {name: verb for group in GROUPS.values() for name, verb in group.items()}

DEBUG_VARIABLE: Final = "HILUM_DEBUG"
USAGE_ERROR: Final = 2
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong usage or missing extra, 130 Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    while words[:1] == ["--debug"]:
        debug, words = True, words[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        _say(help_text())
        return 0
    if words[0] in ("-V", "--version"):
        _say(f"hilum {_version()}")
        return 0
    return _run(words[0], words[1:], debug)


def help_text() -> str:
    """All verbs by group, one line each."""
    lines = [
        "Usage: hilum [--debug] VERB [ARGUMENTS]...",
        "",
        "3D segmentation of CT and MR: search, export, serve, segment.",
    ]
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [
            f"  {name:<12} {verb.help}" + (f"  [{verb.extra}]" if verb.extra else "") for name, verb in verbs.items()
        ]
    lines += [
        "",
        "[name]: needs that extra, pip install 'hilum[name]'.",
        "hilum VERB --help shows a verb's options; --version the version; --debug full tracebacks.",
    ]
    return "\n".join(lines)


def _run(name: str, arguments: list[str], debug: bool) -> int:
    """One verb. This is the outermost door: whatever comes out of a room becomes one sentence and an exit code."""
    verb = VERBS.get(name)
    if verb is None:
        _complain(f"There is no command {name!r}.{_nearest(name)} See hilum --help.")
        return USAGE_ERROR
    try:
        load(verb.target, verb.extra, f"hilum {name}")(arguments, prog_name=f"hilum {name}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if debug:
            raise
        _complain(missing(f"hilum {name}", verb.extra, error).message)
        return USAGE_ERROR
    except Exception as error:
        if debug:
            raise
        _complain(_sentence(error))
        return USAGE_ERROR if isinstance(error, MissingExtra) else 1
    return 0


def _sentence(error: Exception) -> str:
    """Errors of the rooms carry a message for people; anything else is a defect and is named as such."""
    known = told(error)
    if known is not None:
        return known[1]
    return f"Unexpected {type(error).__name__}: {error}. Run it again as hilum --debug ... to see where."


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, VERBS, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _version() -> str:
    from importlib.metadata import version

    return version("hilum")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(sentence: str) -> None:
    sys.stderr.write(f"hilum: {sentence}\n")
