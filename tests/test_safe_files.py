from __future__ import annotations

import ctypes
import hashlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import descriptors

from edgemem.runtime.errors import UnsafePathError
from edgemem.runtime.safe_files import SafeFolder, read_at_most, sha256_of

SECRET = b"outside the folder"
UNSAFE_NAMES = {
    "empty": "",
    "dot": ".",
    "parent": "..",
    "parent file": "../secret",
    "parent in the middle": "sub/../../secret",
    "harmless parent": "sub/../good",
    "absolute": "/etc/passwd",
    "absolute inside": "/good",
    "trailing slash": "good/",
    "double slash": "sub//good",
    "dot slash": "./good",
    "zero byte": "good\0",
    "backslash": "..\\secret",
    "link": "link",
    "link inside": "inner-link",
    "link that dangles": "dangling",
    "link that loops": "loop",
    "link as parent": "linked-folder/secret",
    "hard link": "hard",
    "named pipe": "pipe",
    "socket": "socket",
    "folder": "sub",
    "file as parent": "good/more",
    "device": "device",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `good`, `sub/good` and one of each thing that must not be opened; the secret lies beside it."""
    (tmp_path / "secret").write_bytes(SECRET)
    inside = tmp_path / "folder"
    (inside / "sub").mkdir(parents=True)
    for name in ("good", "sub/good"):
        (inside / name).write_bytes(b"inside")
    (inside / "link").symlink_to("../secret")
    (inside / "inner-link").symlink_to("good")
    (inside / "dangling").symlink_to("nowhere")
    (inside / "loop").symlink_to("loop")
    (inside / "linked-folder").symlink_to("..")
    os.link(tmp_path / "secret", inside / "hard")
    os.mkfifo(inside / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(inside)  # a socket's path may not be long
        server.bind("socket")
        os.chdir(here)
    return inside


@pytest.fixture
def secret_touched(folder: Path) -> Iterator[Callable[[], bool]]:
    """Whether anybody opened or read the secret since: the kernel is asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    accessed, opened = 0x1, 0x20
    assert libc.inotify_add_watch(watcher, os.fsencode(folder.parent / "secret"), accessed | opened) >= 0

    def touched() -> bool:
        try:
            return bool(os.read(watcher, 4096))
        except BlockingIOError:
            return False

    yield touched
    os.close(watcher)


@pytest.mark.parametrize("name", UNSAFE_NAMES.values(), ids=UNSAFE_NAMES)
def test_unsafe_names_are_refused_and_nothing_outside_is_opened(
    folder: Path, name: str, secret_touched: Callable[[], bool]
) -> None:
    if name == "device":
        try:
            os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("making a device needs root")
    with SafeFolder(folder) as opened, pytest.raises(UnsafePathError) as caught:
        opened.open(name)
    assert ascii(name) in str(caught.value)
    assert not secret_touched()


def test_the_watch_sees_an_open(folder: Path, secret_touched: Callable[[], bool]) -> None:
    (folder.parent / "secret").read_bytes()
    assert secret_touched()


@pytest.mark.parametrize("name", ["good", "sub/good"])
@pytest.mark.parametrize("base", ["absolute", "relative", "linked"])
def test_regular_files_open_from_any_way_to_the_folder(
    folder: Path, name: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder.parent / "way").symlink_to(folder)
    path = {"absolute": folder, "relative": Path(), "linked": folder.parent / "way"}[base]
    with SafeFolder(path) as opened:
        descriptor = opened.open(name)
        assert read_at_most(descriptor, 100) == b"inside"
        assert read_at_most(descriptor, 3) == b"ins"
        assert sha256_of(descriptor) == hashlib.sha256(b"inside").hexdigest()
        os.close(descriptor)


def test_a_folder_swapped_after_opening_is_not_followed(folder: Path) -> None:
    with SafeFolder(folder) as opened:
        folder.rename(folder.parent / "moved")
        folder.symlink_to("/etc")
        descriptor = opened.open("good")
        assert read_at_most(descriptor, 100) == b"inside"
        os.close(descriptor)
        with pytest.raises(FileNotFoundError):
            opened.open("passwd")


def test_a_file_swapped_for_a_link_is_refused(folder: Path) -> None:
    with SafeFolder(folder) as opened:
        os.close(opened.open("good"))
        (folder / "good").unlink()
        (folder / "good").symlink_to("../secret")
        with pytest.raises(UnsafePathError, match="good"):
            opened.open("good")


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = descriptors()
    with SafeFolder(folder) as opened:
        assert descriptors() - before
        for name in ("link", "hard", "pipe", "linked-folder/secret", "../secret"):
            with pytest.raises(UnsafePathError):
                opened.open(name)
        with pytest.raises(FileNotFoundError):
            opened.open("missing")
    assert not descriptors() - before


@pytest.mark.parametrize("path", ["good", "nowhere"])
def test_what_is_no_folder_is_an_os_error(folder: Path, path: str) -> None:
    with pytest.raises(OSError, match=path):
        SafeFolder(folder / path)
