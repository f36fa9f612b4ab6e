"""Whether the configurations of a published version belong together: what the gateway reads, and what Triton does."""

from __future__ import annotations

from pathlib import Path

from hilum_export.gates import Gate
from hilum_export.repository import NETWORKS
from hilum_inference.layout import CONFIG, CONFIGS, versions
from hilum_inference.repository import Model, Repository


def configuration_gates(folder: Path, model: Model) -> tuple[Gate, ...]:
    """Variants that are not what their names say, and configurations of the served version that Triton reads otherwise.

    Args:
        folder: of the model, as its repository has it.
        model: by its default configuration.

    Raises:
        ModelError: a variant's network or manifest was changed since its export.
    """
    other = sum(_other(folder, model, variant) for variant in model.variants)
    gates = [Gate("variants of another network or manifest than their names say", other, 0, "variants")]
    if versions(folder)[-1] == model.version and (folder / str(model.version) / CONFIG).is_file():
        here, there = _texts(folder), _texts(folder / str(model.version))
        differing = sum(here.get(name) != there.get(name) for name in here.keys() | there.keys())
        gates.append(Gate("configurations that Triton reads and the version does not have so", differing, 0, "files"))
    return tuple(gates)


def _other(folder: Path, model: Model, variant: str) -> bool:
    """Whether a variant runs another file than its precision's, or is another model altogether."""
    found = Repository([folder.parent], variant).model(model.name, model.version)
    expected = next((name for precision, name in NETWORKS.items() if variant.endswith(f"-{precision}")), None)
    same = found.manifest.preprocessing_digest() == model.manifest.preprocessing_digest()
    return found.network is None or found.network.name != expected or not same


def _texts(folder: Path) -> dict[str, bytes]:
    """Content of a folder's configurations by their path below it."""
    paths = [folder / CONFIG, *(folder / CONFIGS).glob("*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.is_file()}
