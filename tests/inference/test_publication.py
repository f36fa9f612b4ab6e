"""Publishing: all or nothing, whatever stops it, and one after the other when two come at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hilum_testing import SIZE, Tiny, config_text, manifest, onnx_bytes

from hilum_inference.errors import ModelError
from hilum_inference.files import sync_folder
from hilum_inference.manifest import Manifest
from hilum_inference.publication import locked, publish, rollback
from hilum_inference.repository import Repository

NETWORK = onnx_bytes(Tiny(), SIZE)
SMALL = onnx_bytes(Tiny(features=2), SIZE)


def published(folder: Path, title: str = "", variants: tuple[str, ...] = (), **more: object) -> Path:
    """One version; each variant runs ``small.onnx``."""
    described = manifest(title=title)
    texts = {name: config_text(described, name, "small.onnx", SMALL) for name in variants}
    config = config_text(described, "onnxruntime-fp32", "model.onnx", NETWORK)
    files = {"model.onnx": NETWORK, "small.onnx": SMALL}
    return publish(folder, "tiny", config, files, texts, **more)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    """All files and what is in them."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_configurations_follow_the_served_version(tmp_path: Path) -> None:
    published(tmp_path, "first", ("a-fp32", "b-fp32"))
    configs = tmp_path / "tiny" / "configs"
    assert tree(configs) == tree(tmp_path / "tiny" / "1" / "configs") and len(tree(configs)) == 2
    published(tmp_path, "second", ("b-fp32", "c-fp32"))
    assert sorted(tree(configs)) == ["b-fp32.pbtxt", "c-fp32.pbtxt"]
    assert tree(configs) == tree(tmp_path / "tiny" / "2" / "configs")
    published(tmp_path, "third")
    assert not configs.exists()
    rollback(tmp_path, "tiny")
    assert tree(configs) == tree(tmp_path / "tiny" / "2" / "configs")
    assert rollback(tmp_path, "tiny") == 1
    assert tree(configs) == tree(tmp_path / "tiny" / "1" / "configs")
    assert (tmp_path / "tiny" / "config.pbtxt").read_bytes() == (tmp_path / "tiny" / "1" / "config.pbtxt").read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


def test_files_can_be_copied_from_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "big.onnx"
    source.write_bytes(NETWORK)
    version = publish(tmp_path / "models", "tiny", config_text(manifest()), {"model.onnx": source})
    assert (version / "model.onnx").read_bytes() == NETWORK


def test_the_last_word_is_spoken_before_anybody_sees_the_version(tmp_path: Path) -> None:
    seen: list[str] = []

    def sign(version: Path) -> None:
        seen.extend(sorted(tree(version)))
        assert version.name == "1" and not (tmp_path / "tiny").exists()
        (version / "signature").write_text("signed")

    version = published(tmp_path, variants=("a-fp32",), finish=sign)
    assert seen == ["config.pbtxt", "configs/a-fp32.pbtxt", "model.onnx", "small.onnx"]
    assert (version / "signature").read_text() == "signed"


@pytest.mark.parametrize("error", [ValueError("no key"), KeyboardInterrupt()], ids=["refused", "Ctrl-C"])
@pytest.mark.parametrize("known", [0, 1])
def test_what_the_last_word_raises_leaves_the_repository_untouched(
    tmp_path: Path, known: int, error: BaseException
) -> None:
    for _ in range(known):
        published(tmp_path)
    before = tree(tmp_path)

    def sign(version: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        published(tmp_path, "another", finish=sign)
    assert tree(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == known


def test_an_interruption_once_the_version_is_visible_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path, variants=("a-fp32",))
    once = iter([True])

    def interrupted(folder: Path) -> None:
        sync_folder(folder)
        if folder == tmp_path / "tiny" and next(once, False):
            raise KeyboardInterrupt

    monkeypatch.setattr("hilum_inference.publication.sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published(tmp_path, "second", ("b-fp32",))
    assert tree(tmp_path / "tiny" / "configs") == tree(tmp_path / "tiny" / "2" / "configs")
    assert "second" in (tmp_path / "tiny" / "config.pbtxt").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A real file system of that size."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_half_way_leaves_the_repository_untouched(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        published(disk)
        before = tree(disk)
        large = {"model.onnx": NETWORK, "more.onnx": os.urandom(300_000)}
        with pytest.raises(ModelError, match="no room left") as caught:
            publish(disk, "tiny", config_text(manifest()), large)
        assert caught.value.code == "disk_full"
        assert tree(disk) == before
        assert [file.name for file in disk.iterdir()] == ["tiny"]
        assert published(disk).name == "2"  # and there is room again


CHILD = """
import resource, sys, time
from pathlib import Path
from hilum_inference.errors import ModelError
from hilum_inference.publication import publish
folder, inputs = Path(sys.argv[1]), Path(sys.argv[2])
files = {file.name: file for file in inputs.glob("*.onnx")}
variants = {file.stem: file.read_text() for file in inputs.glob("*-fp32.pbtxt")}

def published(finish=None):
    return publish(folder, "tiny", (inputs / "config.pbtxt").read_text(), files, variants, finish).name

"""


def child(program: str, folder: Path, title: str = "one") -> subprocess.Popen[str]:
    """A process of its own that publishes a model of that title, with one variant of its own, as ``program`` says."""
    inputs = folder.parent / f"inputs {title}"
    inputs.mkdir()
    described = manifest(title=title)
    (inputs / "model.onnx").write_bytes(NETWORK)
    (inputs / "config.pbtxt").write_text(config_text(described, weights=NETWORK))
    (inputs / f"by{title}-fp32.pbtxt").write_text(config_text(described, weights=NETWORK))
    command = [sys.executable, "-c", CHILD + program, str(folder), str(inputs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


LIMITED = """
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
try:
    published()
except ModelError as error:
    print(error.code)
"""


def test_a_limit_of_the_system_is_a_full_disk_too(tmp_path: Path) -> None:
    process = child(LIMITED, tmp_path / "models")
    assert process.communicate(timeout=60)[0] == "disk_full\n"
    assert list((tmp_path / "models").iterdir()) == []


AT_ONCE = """
(inputs / "ready").touch()
while not (folder.parent / "go").exists():
    time.sleep(0.001)
print(*(published() for _ in range(5)))
"""


def wait_for(path: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_exports_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    processes = [child(AT_ONCE, folder, str(who)) for who in range(2)]
    for who in range(2):
        wait_for(tmp_path / f"inputs {who}" / "ready")
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(int(name) for names in told for name in names) == list(range(1, 11))
    assert [file.name for file in folder.iterdir()] == ["tiny"]
    repository = Repository([folder])
    for who, names in enumerate(told):
        for name in names:
            model = repository.model("tiny", int(name))
            assert (model.manifest.title, model.variants) == (str(who), (f"by{who}-fp32",))
    served = folder / "tiny" / "10"
    assert tree(folder / "tiny" / "configs") == tree(served / "configs")
    assert (folder / "tiny" / "config.pbtxt").read_bytes() == (served / "config.pbtxt").read_bytes()


KILLED = """
def hang(version):
    (inputs / "hangs").touch()
    time.sleep(600)

published(hang)
"""


def test_a_killed_export_frees_the_repository_and_its_rest_is_swept_away(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    published(folder)
    process = child(KILLED, folder)
    wait_for(tmp_path / "inputs one" / "hangs")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert len(list(folder.iterdir())) == 2  # its unfinished folder, which no reader takes for a model
    assert [model.version for model in Repository([folder]).models()] == [1]
    assert published(folder).name == "2"
    assert [file.name for file in folder.iterdir()] == ["tiny"]


def test_a_version_that_somebody_put_there_meanwhile_is_never_overwritten(tmp_path: Path) -> None:
    published(tmp_path)

    def other(version: Path) -> None:  # on a file system without locks
        (tmp_path / "tiny" / "2").mkdir()
        (tmp_path / "tiny" / "2" / "theirs").touch()

    with pytest.raises(ModelError, match="Somebody else published 2") as caught:
        published(tmp_path, finish=other)
    assert caught.value.code == "busy"
    assert [file.name for file in (tmp_path / "tiny" / "2").iterdir()] == ["theirs"]


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in between"), locked(tmp_path):
        raise ValueError("in between")
    with locked(tmp_path) as alone:
        assert alone


def test_where_there_are_no_locks_nothing_of_others_is_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = tmp_path / ".tiny.01234567.part"
    theirs.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("hilum_inference.publication._holds", lambda handle: False)
        assert published(tmp_path).name == "1"
    assert theirs.exists()
    assert published(tmp_path).name == "2"
    assert not theirs.exists()


def config_of(described: Manifest, **parameters: str) -> str:
    return config_text(described, **parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "variants", "said"),
    [
        ({"../model.onnx": b""}, {}, "cannot be called '../model.onnx'"),
        ({"model.onnx": b"", "configs": b""}, {}, "cannot be called 'configs'"),
        ({"a.onnx": b""}, {}, "config.pbtxt needs model.onnx"),
        ({"model.onnx": b""}, {"../a": config_of(manifest())}, r"variant cannot be called '\.\./a'"),
        ({"model.onnx": b""}, {"a": config_of(manifest(), network="b.onnx")}, "a needs b.onnx, which is not published"),
        ({"model.onnx": b""}, {"a": config_of(manifest(), network="../b.onnx")}, "must be a file of the version"),
        ({"model.onnx": b""}, {"a": config_of(manifest(), variant="b")}, "variant a of tiny calls itself 'b'"),
        ({"model.onnx": b""}, {"a": config_of(manifest(name="b"))}, "does not name 'tiny'"),
        ({"model.onnx": b""}, {"a": "name {"}, r"config\.pbtxt"),
        (
            {"model.onnx": b""},
            {"a": config_of(manifest(), network="model.onnx") + 'default_model_filename: "model.py"'},
            "a needs model.py",
        ),
    ],
)
def test_what_a_reader_would_refuse_is_not_published(
    tmp_path: Path, files: Mapping[str, bytes], variants: Mapping[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        publish(tmp_path / "models", "tiny", config_text(manifest()), files, variants)
    assert not (tmp_path / "models").exists()


def test_a_network_that_its_manifest_was_not_written_for_is_not_published(tmp_path: Path) -> None:
    published(tmp_path)
    before = tree(tmp_path)
    text = config_text(manifest(), "a-fp32", "small.onnx", NETWORK)
    with pytest.raises(ModelError, match=r"small\.onnx is not the network that its manifest was written for"):
        publish(
            tmp_path, "tiny", config_text(manifest()), {"model.onnx": NETWORK, "small.onnx": SMALL}, {"a-fp32": text}
        )
    assert tree(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


def test_a_plan_is_built_later(tmp_path: Path) -> None:
    text = config_text(manifest(), "tensorrt-fp16", "model.onnx", NETWORK)
    text = text.replace('backend: "onnxruntime"', 'backend: "tensorrt"\ndefault_model_filename: "model.plan"')
    publish(tmp_path, "tiny", config_text(manifest()), {"model.onnx": NETWORK}, {"tensorrt-fp16": text})
    assert Repository([tmp_path], "tensorrt-fp16").model().backend == "tensorrt"
