"""A version is signed with OpenSSF's own library and real keys, then changed in every way that would change a mask."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hilum_testing import Tiny, config_text, manifest, onnx_bytes, publish_tiny

from hilum_inference import signed
from hilum_inference.errors import ModelError
from hilum_inference.repository import Repository, publish
from hilum_inference.signed import Signatures, check, check_key, sign

pytest.importorskip("model_signing", reason="model-signing is not installed: no signature is made or checked")

Keys = tuple[Path, Path]


def written(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: str = "") -> Keys:
    encryption = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return written(tmp_path_factory.mktemp("keys"), "ours", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return written(tmp_path_factory.mktemp("keys"), "theirs", ec.generate_private_key(ec.SECP384R1()))


@pytest.fixture
def version(tmp_path: Path, keys: Keys) -> Path:
    folder = tmp_path / "liver" / "3"
    (folder / "configs").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 100)
    (folder / "config.pbtxt").write_text("name")
    (folder / "configs" / "python-fp32.pbtxt").write_text("backend")
    (folder / "model.py").write_text("program")
    (folder / "gates.json").write_text("{}")
    (folder / ".gitignore").write_text("*")
    assert sign(folder, keys[0]) == folder / "model.sig"
    return folder


def test_what_was_signed_passes_and_its_folder_holds_nothing_else_of_ours(version: Path, keys: Keys) -> None:
    check(version, keys[1])
    assert [path.name for path in version.parent.iterdir()] == ["3"]
    sign(version, keys[0])  # again
    check(version, keys[1])


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "network": (lambda f: (f / "model.onnx").write_bytes(b"weightz" * 100), r"model\.onnx was changed"),
    "program": (lambda f: (f / "model.py").write_text("progrbm"), r"model\.py was changed"),
    "variant": (lambda f: (f / "configs" / "python-fp32.pbtxt").write_text("x"), r"python-fp32\.pbtxt was changed"),
    "hidden": (lambda f: (f / ".gitignore").write_text("!"), r"\.gitignore was changed"),
    "removed": (lambda f: (f / "gates.json").unlink(), r"gates\.json is missing"),
    "added program": (lambda f: (f / "more.py").write_text("import os"), r"more\.py was added"),
    "added network": (lambda f: (f / "model_int8.onnx").write_bytes(b""), r"model_int8\.onnx was added"),
    "added variant": (lambda f: (f / "configs" / "x.pbtxt").write_text(""), r"configs/x\.pbtxt was added"),
    "plan elsewhere": (lambda f: (f / "configs" / "model.plan").write_text(""), r"configs/model\.plan was added"),
    "hidden plan": (lambda f: (f / ".model.plan").write_text(""), r"\.model\.plan was added"),
    "nearly a plan": (lambda f: (f / "model.plan.so").write_text(""), r"model\.plan\.so was added"),
    "link": (lambda f: (f / "model_8.6.plan").symlink_to("/etc/hostname"), r"model_8\.6\.plan is no plain file"),
    "link to a folder": (lambda f: (f / "more").symlink_to("/tmp"), "more is no plain file"),
    "network behind a link": (lambda f: behind_a_link(f / "model.onnx"), r"model\.onnx is no plain file"),
    "truncated signature": (lambda f: cut(f / "model.sig"), r"model\.sig cannot be read"),
    "empty signature": (lambda f: (f / "model.sig").write_bytes(b"{}"), r"model\.sig cannot be read"),
    "no signature in it": (lambda f: edit(f, signature=b"0" * 70), "of another key, or was changed"),
}


def behind_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit(folder: Path, signature: bytes | None = None, drop: str | None = None) -> None:
    """Change what a signature says of itself."""
    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    envelope = bundle["dsseEnvelope"]
    if signature is not None:
        envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    if drop is not None:
        statement = json.loads(base64.b64decode(envelope["payload"]))
        resources = statement["predicate"]["resources"]
        statement["predicate"]["resources"] = [each for each in resources if each["name"] != drop]
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(bundle))


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found_and_named(change: str, version: Path, keys: Keys) -> None:
    how, said = CHANGES[change]
    how(version)
    with pytest.raises(ModelError, match=rf"Version 3 of liver is not as it was signed: .*{said}") as refused:
        check(version, keys[1])
    assert refused.value.code == "changed_model" and "\n" not in refused.value.message


def test_a_plan_cannot_be_slipped_out_of_the_signature(version: Path, keys: Keys) -> None:
    (version / "model_8.6.plan").write_bytes(b"plan")
    sign(version, keys[0])  # the plan is signed, too
    check(version, keys[1])
    (version / "model_8.6.plan").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"model_8\.6\.plan was changed"):
        check(version, keys[1])
    edit(version, drop="model_8.6.plan")
    with pytest.raises(ModelError, match="of another key, or was changed"):
        check(version, keys[1])


def test_what_is_built_later_may_lie_there(version: Path, keys: Keys) -> None:
    for name in (
        "model.plan",
        "model_8.6.plan",
        "model_8.6.plan.json",
        "model_12.0.timing",
        ".model_8.6.plan.0a1b2c3d.part",
        ".model.sig.0a1b2c3d.part",
    ):
        (version / name).write_bytes(b"built here")
    check(version, keys[1])


def test_no_signature_and_anothers(version: Path, keys: Keys, theirs: Keys) -> None:
    with pytest.raises(ModelError, match=r"model\.sig is of another key") as refused:
        check(version, theirs[1])
    assert refused.value.code == "changed_model"
    (version / "model.sig").unlink()
    with pytest.raises(ModelError, match="Version 3 of liver is not signed") as refused:
        check(version, keys[1])
    assert refused.value.code == "unsigned_model"


def test_a_signed_version_of_another_model_is_known_by_its_manifest_not_by_its_place(version: Path, keys: Keys) -> None:
    moved = version.parent.parent / "spleen" / "3"
    moved.parent.mkdir()
    version.rename(moved)
    check(moved, keys[1])  # the manifest in config.pbtxt names the model, and a repository compares it


def test_keys_that_are_none(version: Path, keys: Keys, tmp_path: Path) -> None:
    locked, _ = written(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), "secret")
    other, other_public = written(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    odd, odd_public = written(tmp_path, "odd", ec.generate_private_key(ec.SECP256K1()))
    text = tmp_path / "text.pem"
    text.write_text("no key")
    for key, said in (
        (locked, "has a password"),
        (other, "no private key of an elliptic curve"),
        (odd, "no private key of an elliptic curve"),
        (text, "no private key of an elliptic curve"),
        (keys[1], "no private key of an elliptic curve"),
        (tmp_path / "absent.pem", "cannot be read: No such file"),
    ):
        with pytest.raises(ModelError, match=said) as refused:
            sign(version, key)
        assert refused.value.code == "bad_key"
    for key in (keys[0], other_public, odd_public, text, tmp_path / "absent.pem"):
        with pytest.raises(ModelError, match="public key") as refused:
            check_key(key)
        assert refused.value.code == "bad_key"
    check_key(keys[1])


def test_what_cannot_be_signed_is_not(version: Path, keys: Keys) -> None:
    before = (version / "model.sig").read_bytes()
    (version / "link").symlink_to("model.onnx")
    with pytest.raises(ModelError, match="link is no plain file; it cannot be signed"):
        sign(version, keys[0])
    assert (version / "model.sig").read_bytes() == before


def test_files_are_read_again_only_when_one_changed(version: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    real = signed.check

    def counted(folder: Path, key: Path) -> None:
        calls.append(folder)
        real(folder, key)

    monkeypatch.setattr(signed, "check", counted)
    signatures = Signatures(keys[1])
    signatures.check(version)
    signatures.check(version)
    assert len(calls) == 1
    (version / "model_8.6.plan").write_bytes(b"plan")
    signatures.check(version)
    assert len(calls) == 2
    time.sleep(0.01)
    network = version / "model.onnx"
    network.write_bytes(network.read_bytes().replace(b"w", b"v"))  # of the same size
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model\.onnx was changed"):
            signatures.check(version)
    assert len(calls) == 4  # a refusal is not remembered


def test_nothing_is_asked_of_the_network_and_nothing_is_loaded_before_it_is_needed(version: Path, keys: Keys) -> None:
    program = f"""
import socket, sys
from pathlib import Path
def never(*_, **__): raise AssertionError("the network was used")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = never
from hilum_inference import signed
assert "model_signing" not in sys.modules and "cryptography" not in sys.modules
signed.sign(Path({str(version)!r}), Path({str(keys[0])!r}))
signed.check(Path({str(version)!r}), Path({str(keys[1])!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_library_it_says_what_to_install(
    version: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("signing", "verifying"):
        monkeypatch.setitem(sys.modules, f"model_signing.{name}", None)
    for call in (lambda: sign(version, keys[0]), lambda: check(version, keys[1]), lambda: check_key(keys[1])):
        with pytest.raises(ModelError, match=r"not installed: pip install 'hilum\[signing\]'") as refused:
            call()
        assert refused.value.code == "missing_extra"


def test_a_repository_serves_only_what_was_signed(tmp_path: Path, keys: Keys, theirs: Keys) -> None:
    for number, name in enumerate(("ours", "theirs", "nobodys")):
        model, _ = publish_tiny(tmp_path, manifest(name=name))
        assert model.folder is not None
        own = model.folder / "1"
        (own / "config.pbtxt").write_bytes((model.folder / "config.pbtxt").read_bytes())
        if number < 2:
            sign(own, (keys, theirs)[number][0])
    repository = Repository([tmp_path], signed_by=keys[1])
    assert [model.name for model in repository.models()] == ["ours"]
    assert set(repository.broken) == {"theirs", "nobodys"}
    assert "is of another key" in repository.broken["theirs"] and "is not signed" in repository.broken["nobodys"]
    with pytest.raises(ModelError, match="is not signed"):
        repository.model("nobodys")
    network = tmp_path / "ours" / "1" / "model.onnx"
    (network.parent / "model.py").write_text("import os")
    assert repository.models() == () and "model.py was added" in repository.broken["ours"]
    assert len(Repository([tmp_path]).models()) == 3


def test_a_manifest_outside_the_signature_is_not_believed(tmp_path: Path, keys: Keys) -> None:
    model, _ = publish_tiny(tmp_path, manifest())
    assert model.folder is not None
    (model.folder / "1" / "config.pbtxt").unlink(missing_ok=True)
    sign(model.folder / "1", keys[0])
    with pytest.raises(ModelError, match=r"has no config\.pbtxt of its own: its manifest is not signed") as refused:
        Repository([tmp_path], signed_by=keys[1]).model("tiny")
    assert refused.value.code == "unsigned_model"


def test_a_publication_is_signed_before_anybody_sees_it(tmp_path: Path, keys: Keys) -> None:
    net = onnx_bytes(Tiny(), (16, 16, 16))
    text = config_text(manifest())
    publish(tmp_path, "tiny", text, {"model.onnx": net}, finish=lambda folder: void(sign(folder, keys[0])))
    assert Repository([tmp_path], signed_by=keys[1]).model().version == 1
    with pytest.raises(ModelError, match="cannot be read"):
        publish(tmp_path, "tiny", text, {"model.onnx": net}, finish=lambda f: void(sign(f, tmp_path / "absent")))
    assert [path.name for path in (tmp_path / "tiny").iterdir() if path.is_dir()] == ["1"]


def void(_: object) -> None:
    """So that a function that returns something can be called for what it does."""


def test_the_commands_of_the_page_make_keys_that_are_taken(version: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: the page's commands are not tried")
    page = (Path(__file__).parents[2] / "docs" / "signing.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith(("openssl ", "chmod "))]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    sign(version, tmp_path / "hilum-signing.pem")
    check(version, tmp_path / "hilum-signing.pub")
