"""Where the files of a Triton model repository lie, and how its configurations are read.

    <repository>/<model>/config.pbtxt             of the version that is served
    <repository>/<model>/configs/<variant>.pbtxt  what ``tritonserver --model-config-name=<variant>`` picks
    <repository>/<model>/<version>/               the networks, and that version's own config.pbtxt and configs/

A variant is a back-end and a precision, ``<back-end>-<precision>``; all variants of a version have the same tensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hilum_inference.errors import ModelError, UnknownModelError
from hilum_inference.manifest import PARAMETER, Manifest, parse_manifest
from hilum_inference.pbtxt import Message, parse_pbtxt

CONFIG: Final = "config.pbtxt"
CONFIGS: Final = "configs"
SUFFIX: Final = ".pbtxt"
DEFAULT_NETWORK: Final = "model.onnx"
WITHDRAWN: Final = "withdrawn-"
"""Before the number of a version that was rolled back: to Triton every folder is a version that begins with a digit."""
FORMERLY_WITHDRAWN: Final = ".withdrawn"
"""After the number, as earlier releases named it: no Triton starts with such a folder."""
LARGEST_CONFIG: Final = 64 * 2**20

NETWORK_PARAMETER: Final = "hilum_network"
"""Names the ONNX file behind a variant, also where the back-end loads another file: a plan, a program."""
VARIANT_PARAMETER: Final = "hilum_variant"

_VARIANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def numbers(folder: Path) -> list[int]:
    """All version numbers that a model was ever given, withdrawn ones too."""
    if not folder.is_dir():
        return []
    names = [f.name.removeprefix(WITHDRAWN).removesuffix(FORMERLY_WITHDRAWN) for f in folder.iterdir() if f.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def versions(folder: Path) -> list[int]:
    """The versions that a model has, the one that is served last.

    Raises:
        ModelError: it has none.
    """
    names = [f.name for f in os.scandir(folder) if f.is_dir()]
    found = sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0")
    if not found:
        raise ModelError(f"Model {folder.name} has no version folder.", code="no_version")
    return found


def home_of_configs(folder: Path, version: int) -> Path:
    """Where the configurations of a version lie: in its own folder, or with the model where nobody put them there."""
    own = folder / str(version)
    return own if (own / CONFIG).is_file() else folder


def variants(folder: Path, version: int) -> tuple[str, ...]:
    """Names of the variants that a version has, besides its ``config.pbtxt``."""
    home = home_of_configs(folder, version) / CONFIGS
    found = [f.stem for f in home.iterdir() if f.suffix == SUFFIX and f.is_file()] if home.is_dir() else []
    return tuple(sorted(name for name in found if is_variant(name)))


def config_file(folder: Path, version: int, variant: str | None) -> Path:
    """The configuration of a version, or of one variant of it.

    Raises:
        UnknownModelError: it has no such variant.
    """
    home = home_of_configs(folder, version)
    if variant is None:
        return home / CONFIG
    known = variants(folder, version)
    if variant not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UnknownModelError(
            f"Version {version} of {folder.name} has no variant {variant!r}; {has}.", code="unknown_variant"
        )
    return home / CONFIGS / f"{variant}{SUFFIX}"


def is_variant(name: str) -> bool:
    """Whether a variant may be called so."""
    return _VARIANT.fullmatch(name) is not None


def is_plain(name: str) -> bool:
    """Whether a name stays inside its folder on every system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def read_config(path: Path) -> Message:
    """A configuration from its file.

    Raises:
        ModelError: too large, or not protobuf text.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise ModelError(f"{path.name} is larger than {LARGEST_CONFIG >> 20} MiB.", code="bad_config")
    try:
        return parse_pbtxt(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path.name} is not text.", code="bad_config") from error


def parameter(config: Message, key: str, model: str) -> str | None:
    """The text of a parameter of a configuration; None where it has none of that key.

    Raises:
        ModelError: the parameter has no text.
    """
    for each in config.get("parameters", []):
        if not isinstance(each, dict) or each.get("key") != [key]:
            continue
        try:
            return str(each["value"][0]["string_value"][0])
        except (KeyError, TypeError, IndexError) as error:
            raise ModelError(f"The parameter {key} of {model} has no text.", code="bad_config") from error
    return None


def manifest_of(config: Message, model: str) -> Manifest:
    """The manifest inside a configuration, which must be that of the model.

    Raises:
        ModelError: none there, not valid, or another model's.
    """
    text = parameter(config, PARAMETER, model)
    if text is None:
        raise ModelError(f"The config.pbtxt of {model} has no parameter {PARAMETER}.", code="no_manifest")
    manifest = parse_manifest(text)
    if manifest.name != model:
        raise ModelError(
            f"The manifest does not name {model!r}, as its folder is called, but {manifest.name!r}.",
            code="bad_manifest",
        )
    return manifest


def network_name(config: Message, model: str) -> str:
    """The ONNX file behind a configuration, in the version's folder.

    Raises:
        ModelError: it would lie elsewhere, or Triton would load another one.
    """
    loaded = str((config.get("default_model_filename") or [DEFAULT_NETWORK])[0])
    name = parameter(config, NETWORK_PARAMETER, model) or loaded
    by_gpu = (each.get("value", []) for each in config.get("cc_model_filenames", []) if isinstance(each, dict))
    files = {loaded, *(str(file) for given in by_gpu for file in given)}
    check_loaded(model, name, files, str((config.get("backend") or [""])[0]))
    if not is_plain(name):
        raise ModelError(
            f"The network of {model} must be a file of the version's folder, not {name!r}.", code="bad_config"
        )
    return name


def check_loaded(model: str, named: str, loaded: Collection[str], backend: str) -> None:
    """Refuse a configuration whose network, which was checked, is not the file that ONNX Runtime would load.

    A plan is made of the network, and the python back-end's program reads the name.

    Args:
        model: its name.
        named: the network that digests and checks are of.
        loaded: what Triton loads: ``default_model_filename``, and ``cc_model_filenames`` on certain GPUs.
        backend: Triton's.

    Raises:
        ModelError: it is not.
    """
    other = sorted(set(loaded) - {named})
    if backend in ("", "onnxruntime") and other:
        raise ModelError(
            f"The configuration of {model} has Triton load {other[0]}, but names {named} as its network.",
            code="bad_config",
        )


def checked_variant(config: Message, model: str, variant: str | None) -> str:
    """The name that a configuration gives its variant; an older one gives none.

    Raises:
        ModelError: it names another than it was found under.
    """
    name = parameter(config, VARIANT_PARAMETER, model)
    if variant is not None and name not in (None, variant):
        raise ModelError(f"The variant {variant} of {model} calls itself {name!r}.", code="bad_config")
    return variant or name or ""
