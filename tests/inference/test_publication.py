"""Publishing: all or nothing, whatever stops it, and one after the other when two come at once."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import triton_server
from hilum_testing import SIZE, Tiny, config_text, manifest, onnx_bytes

from hilum_export.repository import configs
from hilum_inference.errors import EngineError, ModelError, UnknownModelError
from hilum_inference.manifest import Manifest
from hilum_inference.publication import publish, repair, rollback
from hilum_inference.repository import Repository
from hilum_inference.staging import locked

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
    rename = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target.parent == tmp_path / "tiny" and next(once, False):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
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
    assert [file.name for file in folder.iterdir()] == ["tiny"]
    assert len(list((folder / "tiny").glob(".*"))) == 1  # its unfinished folder
    assert [model.version for model in Repository([folder]).models()] == [1]
    other = manifest(name="other")
    publish(folder, "other", config_text(other), {"model.onnx": NETWORK})  # whatever it publishes
    assert sorted(tree(folder / "tiny")) == ["1/config.pbtxt", "1/model.onnx", "1/small.onnx", "config.pbtxt"]
    assert not list((folder / "tiny").glob(".*"))
    assert published(folder).name == "2"


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
        patch.setattr("hilum_inference.staging._holds", lambda handle: False)
        assert published(tmp_path).name == "1"
    assert theirs.exists()
    assert published(tmp_path).name == "2"
    assert not theirs.exists()


def killed(program: str, folder: Path) -> None:
    """Publish as ``program`` says, until it says that it hangs; then kill it."""
    process = child(program, folder)
    wait_for(folder.parent / "inputs one" / "hangs")
    process.kill()
    process.communicate(timeout=30)


def test_a_first_publication_is_prepared_beside_the_repository(tmp_path: Path) -> None:
    folder = tmp_path / "mo*els"
    killed(KILLED, folder)
    assert list(folder.iterdir()) == []
    assert len(list(tmp_path.glob(".mo[*]els.????????.part"))) == 1
    for name in (".models.01234567.part", ".mo*els.more.01234567.part"):  # of other repositories
        (tmp_path / name).mkdir()
    assert published(folder).name == "1"
    assert sorted(file.name for file in tmp_path.glob(".*")) == [".mo*els.more.01234567.part", ".models.01234567.part"]


def test_a_repository_that_is_a_disk_of_its_own_is_published_in_and_swept(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        killed(KILLED, disk)
        assert len(list(disk.glob(".tiny.????????.part"))) == 1
        assert published(disk).name == "1"
        assert [file.name for file in disk.iterdir()] == ["tiny"]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_mounted_from_the_same_disk_is_published_in(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    folder = tmp_path / "models"
    folder.mkdir()
    bound = subprocess.run(["mount", "--bind", str(tmp_path / "disk"), str(folder)], capture_output=True)
    if bound.returncode:
        pytest.skip("no folder may be mounted here")
    try:
        assert published(folder).name == "1"  # no rename leads over the mount, though the disk is the same
    finally:
        subprocess.run(["umount", str(folder)], check=True)


IN_THE_WINDOW = """
from hilum_inference import staging
from hilum_inference.publication import rollback

def die(*arguments):
    (inputs / "hangs").touch()
    time.sleep(600)

staging._replace_configs = die
"""


@pytest.mark.parametrize("begun", ["published()", "rollback(folder, 'tiny')"], ids=["publish", "rollback"])
@pytest.mark.parametrize("then", ["repair", "publish", "rollback", "another"])
def test_what_a_kill_left_half_done_is_put_right(tmp_path: Path, begun: str, then: str) -> None:
    folder = tmp_path / "models"
    for title in ("first", "second", "third"):
        published(folder, title, (f"{title}-fp32",))
    killed(IN_THE_WINDOW + begun, folder)
    served = Repository([folder]).model()
    assert served.version == (4 if begun == "published()" else 2)
    assert "third" in (folder / "tiny" / "config.pbtxt").read_text()  # which is not served
    if then == "repair":
        repair(folder)
    elif then == "publish":
        published(folder)
    elif then == "rollback":
        rollback(folder, "tiny")
    else:
        publish(folder, "other", config_text(manifest(name="other")), {"model.onnx": NETWORK})
    own = folder / "tiny" / str(Repository([folder]).model("tiny").version)
    assert (folder / "tiny" / "config.pbtxt").read_bytes() == (own / "config.pbtxt").read_bytes()
    configs, theirs = folder / "tiny" / "configs", own / "configs"
    assert configs.is_dir() == theirs.is_dir() and tree(configs) == tree(theirs)
    assert not list((folder / "tiny").glob(".*"))


def test_configurations_of_another_version_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    published(tmp_path, "first", ("a-fp32",))
    published(tmp_path, "second", ("b-fp32",))
    config = tmp_path / "tiny" / "config.pbtxt"
    whole = tree(tmp_path)
    shutil.copy(tmp_path / "tiny" / "1" / "configs" / "a-fp32.pbtxt", tmp_path / "tiny" / "configs")
    repair(tmp_path)
    assert tree(tmp_path) == whole
    shutil.copy(tmp_path / "tiny" / "1" / "config.pbtxt", config)
    repair(tmp_path)
    assert tree(tmp_path) == whole
    config.write_text(config.read_text() + "instance_group { count: 2 kind: KIND_CPU }\n")  # by whoever runs the Triton
    mine = tree(tmp_path)
    repair(tmp_path)
    assert tree(tmp_path) == mine
    config.write_text("name {")  # broken: no matter of ours, and none of other models'
    repair(tmp_path)
    assert config.read_text() == "name {"


def test_versions_that_an_earlier_release_withdrew_get_a_name_that_triton_bears(tmp_path: Path) -> None:
    published(tmp_path)
    (tmp_path / "tiny" / "2.withdrawn").mkdir()
    assert published(tmp_path).name == "3"
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir() if path.is_dir()) == ["1", "3", "withdrawn-2"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda version: (version / "model.onnx").unlink(), r"it has no file model\.onnx"),
        (lambda version: (version / "small.onnx").write_bytes(b""), r"small\.onnx is not the network"),
        (lambda version: (version / "config.pbtxt").write_text("name {"), r"config\.pbtxt"),
    ],
)
def test_nothing_is_withdrawn_where_the_version_before_cannot_be_served(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    published(tmp_path, "first", ("a-fp32",))
    published(tmp_path, "second")
    damage(tmp_path / "tiny" / "1")
    before = tree(tmp_path)
    with pytest.raises(ModelError, match=f"Nothing was withdrawn, since version 1 of tiny cannot be served: .*{said}"):
        rollback(tmp_path, "tiny")
    assert tree(tmp_path) == before


def test_a_version_made_by_hand_can_be_gone_back_to(tmp_path: Path) -> None:
    published(tmp_path, "by hand", ("a-fp32",))
    (tmp_path / "tiny" / "1" / "config.pbtxt").unlink()
    shutil.rmtree(tmp_path / "tiny" / "1" / "configs")
    before = tree(tmp_path)
    other = {"model.onnx": SMALL}
    publish(tmp_path, "tiny", config_text(manifest(title="second"), weights=SMALL), other)
    assert rollback(tmp_path, "tiny") == 1
    assert Repository([tmp_path], "a-fp32").model().manifest.title == "by hand"
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a\\b"])
def test_a_name_that_leaves_the_repository_is_no_model(tmp_path: Path, name: str) -> None:
    published(tmp_path / "models")
    with pytest.raises(UnknownModelError, match=r"A model cannot be called '"):
        rollback(tmp_path / "models", name)


@pytest.mark.parametrize("stray", ["tiny/notes.txt", "tiny"])
def test_what_is_no_model_is_not_taken_for_a_rival(tmp_path: Path, stray: str) -> None:
    (tmp_path / "models" / stray).parent.mkdir(parents=True)
    (tmp_path / "models" / stray).touch()
    with pytest.raises(
        ModelError, match=r"tiny is there already and holds no version of a model: move it away"
    ) as caught:
        published(tmp_path / "models")
    assert caught.value.code == "place_taken"


def test_a_repository_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "models"):
        with pytest.raises(ModelError, match="is no folder of models: a file is there") as caught:
            published(folder)
        assert caught.value.code == "no_repository"


def with_python(folder: Path, network: bytes) -> None:
    """Publish a version that the test server can run."""
    texts = configs(manifest(), 4, {"fp32": hashlib.sha256(network).hexdigest()})
    files: Mapping[str, bytes | Path] = {"model.onnx": network, "model.py": triton_server.MODEL_PY}
    publish(folder, "tiny", texts["onnxruntime-fp32"], files, texts)


@pytest.mark.triton
@pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env")
def test_a_real_triton_starts_after_a_rollback_and_beside_what_killed_exports_left(tmp_path: Path) -> None:
    from tritonclient.grpc import InferenceServerClient

    folder = tmp_path / "models"
    killed(KILLED, folder)
    assert len(list(tmp_path.glob(".models.*.part"))) == 1
    with_python(folder, NETWORK)
    with_python(folder, SMALL)
    assert rollback(folder, "tiny") == 1
    shutil.rmtree(tmp_path / "inputs one")
    killed(KILLED, folder)
    assert len(list((folder / "tiny").glob(".*.part"))) == 1
    with triton_server.triton(folder, tmp_path / "scratch") as address, InferenceServerClient(address) as client:
        assert client.is_model_ready("tiny", "1")
        assert [each.version for each in client.get_model_repository_index().models] == ["1"]


@pytest.mark.triton
@pytest.mark.skipif(not triton_server.installed(), reason="no test Triton: run make triton-env")
def test_a_real_triton_serves_no_network_with_the_configuration_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    with_python(folder, NETWORK)
    with_python(folder, SMALL)
    shutil.rmtree(folder / "tiny" / "configs")
    shutil.copytree(folder / "tiny" / "1" / "configs", folder / "tiny" / "configs")
    with (
        pytest.raises(EngineError, match="failed to load all models"),
        triton_server.triton(folder, tmp_path / "scratch"),
    ):
        pass
    said = (tmp_path / "scratch" / "triton.log").read_text(errors="replace")
    assert "model.onnx of version 2 is not the network that this configuration describes" in said
    repair(folder)
    with triton_server.triton(folder, tmp_path / "scratch"):
        pass


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
            {
                "a": config_of(manifest(), network="model.onnx")
                .replace('default_model_filename: "model.onnx"', 'default_model_filename: "model.py"')
                .replace("onnxruntime", "python")
            },
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
