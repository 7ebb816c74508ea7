"""Pairing: the code, the proof, both sides' files, and what a stranger gets of it, which is nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from split_network import HELLO, PATIENCE_S, Eavesdropper, LoopThread, client_tls, self_made, server_tls

from edgemem.runtime.errors import FileError, LinkError, ProtocolError, SettingsError
from edgemem.split import pairing
from edgemem.split.identity import check_certificate, own_identity
from edgemem.split.link import Link
from edgemem.split.pairing import (
    LIFETIME_S,
    TRIES,
    OneTimeSecret,
    pack_reply,
    pack_request,
    proof_of,
    take_reply,
    take_request,
)
from edgemem.split.pairing_code import PairingCode
from edgemem.split.pairing_device import pair
from edgemem.split.pairing_door import PairingDoor
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.tools.cli import main

ROBOT, OTHER = Device("robot", b"its certificate"), Device("other", b"another")
hosts = st.ip_addresses().map(str) | st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,6}){0,3}", fullmatch=True)
codes = st.builds(
    PairingCode,
    hosts,
    st.integers(1, 65535),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=8, max_size=8),
)


@given(codes)
def test_a_code_is_read_as_it_is_typed(code: PairingCode) -> None:
    text = code.text()
    assert PairingCode.parse(text) == code
    assert PairingCode.parse(text.lower().replace("0", "o").replace("1", "l").replace("-", " ") + "\n") == code


@given(codes, st.data())
def test_a_slip_of_the_finger_is_noticed(code: PairingCode, data: st.DataObject) -> None:
    letters = code.text().replace("-", "")
    at = data.draw(st.integers(0, len(letters) - 2))  # the last may hold bits that mean nothing
    other = data.draw(st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ").filter(lambda letter: letter != letters[at]))
    with pytest.raises(SettingsError, match="no pairing code"):
        PairingCode.parse(letters[:at] + other + letters[at + 1 :])
    with pytest.raises(SettingsError, match="no pairing code"):
        PairingCode.parse(letters[:-4])


@given(st.text(max_size=80))
def test_other_text_is_no_code(text: str) -> None:
    with pytest.raises(SettingsError, match="no pairing code"):
        PairingCode.parse(text)


def test_codes_are_short_and_never_the_same() -> None:
    codes = {PairingCode.new("192.168.178.201", 7411, "ab" * 32).text() for _ in range(100)}
    assert len(codes) == 100
    assert all(len(code.replace("-", "")) <= 53 for code in codes)
    with pytest.raises(SettingsError, match="host"):
        PairingCode.new("x" * 100, 1, "ab" * 32).text()


def test_a_secret_is_good_once() -> None:
    secret = OneTimeSecret(b"12345678")
    secret.redeem(proof_of(b"12345678", b"server", ROBOT), b"server", ROBOT)
    with pytest.raises(LinkError, match="used up"):
        secret.redeem(proof_of(b"12345678", b"server", ROBOT), b"server", ROBOT)


def test_a_secret_is_good_for_ten_minutes() -> None:
    now = 1000.0
    secret = OneTimeSecret(b"12345678", lambda: now)
    now += LIFETIME_S - 1
    assert secret.left_s == 1
    now += 1
    with pytest.raises(LinkError, match="too old"):
        secret.redeem(proof_of(b"12345678", b"server", ROBOT), b"server", ROBOT)


@pytest.mark.parametrize(
    "proof",
    [
        proof_of(b"12345679", b"server", ROBOT),
        proof_of(b"12345678", b"a server in between", ROBOT),
        proof_of(b"12345678", b"server", OTHER),
        proof_of(b"12345678", b"server", replace(ROBOT, name="boss")),
        bytes(32),
    ],
)
def test_a_proof_of_something_else_counts_as_a_try(proof: bytes) -> None:
    secret = OneTimeSecret(b"12345678")
    for _ in range(TRIES):
        assert secret.left_s
        with pytest.raises(LinkError, match="not the one"):
            secret.redeem(proof, b"server", ROBOT)
    with pytest.raises(LinkError, match="used up"):
        secret.redeem(proof_of(b"12345678", b"server", ROBOT), b"server", ROBOT)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError, SettingsError):
        device, proof = take_request(data)
        assert (device.name and device.certificate and len(proof)) == 32
    with contextlib.suppress(ProtocolError):
        port, _ = take_reply(data)
        assert port is None or 0 <= port < 65536


def test_requests_and_replies_come_back() -> None:
    assert take_request(pack_request(ROBOT, bytes(32))[4:]) == (ROBOT, bytes(32))
    assert take_reply(pack_reply(None, "no\x1b")[4:]) == (None, "no?")
    assert take_reply(pack_reply(7, "robot")[4:]) == (7, "robot")


def test_an_identity_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    first = own_identity(tmp_path / "a" / "split", "device")
    assert own_identity(tmp_path / "a" / "split", "device") == first
    assert own_identity(tmp_path / "b", "device").certificate != first.certificate
    assert first.path.stat().st_mode & 0o777 == 0o600
    assert first.path.parent.stat().st_mode & 0o777 == 0o700
    assert not list(first.path.parent.glob("*partial*"))
    check_certificate(first.certificate, "device")


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = own_identity(tmp_path / "a", "device").path
    path.chmod(0o640)
    with pytest.raises(FileError, match="open to others"):
        own_identity(tmp_path / "a", "device")
    path.chmod(0o600)
    path.parent.chmod(0o750)
    with pytest.raises(FileError, match="open to others"):
        own_identity(tmp_path / "a", "device")


def test_an_identity_that_is_a_link_or_damaged_is_refused(tmp_path: Path) -> None:
    path = own_identity(tmp_path / "a", "device").path
    elsewhere = path.rename(tmp_path / "moved.pem")
    path.symlink_to(elsewhere)
    with pytest.raises(FileError, match="unsafe"):
        own_identity(tmp_path / "a", "device")
    path.unlink()
    for content in (b"", b"-----BEGIN CERTIFICATE-----\n!", b"\xff", elsewhere.read_bytes()[:600], bytes(20_000)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(FileError, match=r"damaged|too long"):
            own_identity(tmp_path / "a", "device")


def altered(certificate: bytes) -> bytes:
    return certificate[:-3] + bytes([certificate[-3] ^ 1]) + certificate[-2:]


NOT_OURS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda folder: b"",
    "no certificate": lambda folder: b"0\x82\x01\x00" + bytes(256),
    "too long": lambda folder: bytes(5000),
    "a server's": lambda folder: own_identity(folder, "server").certificate,
    "an authority": lambda folder: self_made(folder / "x.pem", server=False, authority=True).certificate,
    "signed by another": lambda folder: (
        self_made(folder / "x.pem", server=False, issuer=own_identity(folder, "device").path).certificate
    ),
    "of another kind of key": lambda folder: (
        self_made(folder / "x.pem", server=False, key=rsa.generate_private_key(65537, 2048)).certificate
    ),
    "of another curve": lambda folder: (
        self_made(folder / "x.pem", server=False, key=ec.generate_private_key(ec.SECP384R1())).certificate
    ),
    "with a signature that is none": lambda folder: altered(own_identity(folder, "device").certificate),
}


@pytest.mark.parametrize("what", NOT_OURS)
def test_only_a_certificate_like_ours_is_pinned(tmp_path: Path, what: str) -> None:
    certificate = NOT_OURS[what](tmp_path)
    with pytest.raises(LinkError, match="no device's certificate"):
        check_certificate(certificate, "device")


def test_peers_are_kept_renamed_renewed_and_forgotten(tmp_path: Path) -> None:
    file = PeerFile(tmp_path / "split", Device)
    assert file.read() == []
    assert file.put(ROBOT) == ROBOT
    assert file.put(replace(OTHER, name="robot")).name == "robot-2"
    assert file.put(Device("robot", b"a third")).name == "robot-3"
    assert file.put(replace(ROBOT, name="renamed")).name == "renamed"
    assert [peer.name for peer in file.read()] == ["robot-2", "robot-3", "renamed"]
    assert file.named("renamed").certificate == ROBOT.certificate
    assert file.forget("robot-2").certificate == OTHER.certificate
    with pytest.raises(SettingsError, match=r"(?s)no peer is called 'robot-2'.*robot-3, renamed"):
        file.forget("robot-2")
    assert file.path.stat().st_mode & 0o777 == 0o600
    servers = PeerFile(tmp_path / "split", Server)
    home = servers.put(Server("home", "fe80::1%eth0", 7410, b"pinned"))
    assert servers.read() == [home]


def test_writers_take_turns(tmp_path: Path) -> None:
    file = PeerFile(tmp_path / "split", Device)
    names = [f"robot{number}" for number in range(16)]
    threads = [threading.Thread(target=file.put, args=(Device(name, name.encode()),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(peer.name for peer in file.read()) == sorted(names)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format: 1", "format: 2"),
        ("format: 1", "format: 1\nmore: 1"),
        ("devices:", "servers:"),
        ("name: robot", "name: ../robot"),
        ("name: robot", "name: 7"),
        ("name: robot", "name: robot\n  age: 3"),
        ("certificate: ", "certificate: '*'\n  x: "),
        ("certificate: aXR", "certificate: '*'  #"),
        ("certificate: aXR", "certificate: ''  #"),
        ("- name", "- - name"),
        ("name: other", "name: robot"),
        ("format", "\x00"),
    ],
)
def test_a_damaged_list_of_peers_lets_nobody_in(tmp_path: Path, old: str, new: str) -> None:
    file = PeerFile(tmp_path / "split", Device)
    for device in (ROBOT, OTHER):
        file.put(device)
    text = file.path.read_text()
    assert old in text
    file.path.write_text(text.replace(old, new))
    with pytest.raises(FileError, match="damaged"):
        file.read()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "-x"),
        ("name", "x" * 64),
        ("name", "a b"),
        ("host", ""),
        ("host", "a b"),
        ("host", "x" * 254),
        ("port", 0),
        ("port", 65536),
        ("port", True),
        ("certificate", b""),
        ("certificate", bytes(4097)),
        ("certificate", "text"),
        ("certificate", None),
    ],
)
def test_a_server_that_cannot_be_is_refused(field: str, value: Any) -> None:
    server = Server("home", "192.168.1.5", 7410, b"pinned")
    with pytest.raises(SettingsError):
        replace(server, **{field: value})
    assert Server("here", "::1", 7410, None).address == "[::1]:7410"


@contextmanager
def pairing_open(folder: Path, session_port: int = 7410) -> Iterator[tuple[PairingCode, Future[Device | None]]]:
    """A server that shows its code, and what serving it gave."""
    with LoopThread() as loops:
        shown: Future[PairingCode] = Future()

        async def serve() -> Device | None:
            identity = own_identity(folder, "server")
            door = PairingDoor("127.0.0.1", 0, identity=identity, folder=folder)
            return await door.serve("127.0.0.1", session_port, shown.set_result)

        served = loops.start(serve())
        yield shown.result(PATIENCE_S), served


def test_both_sides_know_each_other_after_pairing(tmp_path: Path) -> None:
    there, here = tmp_path / "server", tmp_path / "device"
    with pairing_open(there, session_port=9) as (code, served):
        server = pair(PairingCode.parse(code.text()), here, name="home", device_name="robot")
        assert served.result(PATIENCE_S) == Device("robot", own_identity(here, "device").certificate)
        with pytest.raises(LinkError, match="pairing failed"):  # the port is closed
            pair(code, tmp_path / "late", name="home", device_name="late")
    assert server == Server("home", "127.0.0.1", 9, own_identity(there, "server").certificate)
    assert PeerFile(here, Server).read() == [server]
    assert [device.name for device in PeerFile(there, Device).read()] == ["robot"]


def test_a_man_in_the_middle_is_told_nothing(tmp_path: Path) -> None:
    own = own_identity(tmp_path / "server", "server")
    between = own_identity(tmp_path / "between", "server")
    with Eavesdropper(server_tls(between)) as eavesdropper:
        code = PairingCode.new("127.0.0.1", eavesdropper.port, own.fingerprint)
        with pytest.raises(LinkError, match="not the server that made the code"):
            pair(code, tmp_path / "device", name="home", device_name="robot")
    assert eavesdropper.received == b""
    assert PeerFile(tmp_path / "device", Server).read() == []


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\x01", b"\xff\xff\xff\xff", pack_reply(0, "x"), b"\0\0\0\x02ab"])
def test_a_server_that_answers_nonsense_is_not_kept(tmp_path: Path, answer: bytes) -> None:
    identity = own_identity(tmp_path / "server", "server")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            accepted, _ = listening.accept()
            with server_tls(identity).wrap_socket(accepted, server_side=True) as secured:
                secured.recv(100)
                secured.sendall(answer)
                secured.unwrap()

        thread = threading.Thread(target=_quietly, args=(serve,))
        thread.start()
        code = PairingCode.new("127.0.0.1", listening.getsockname()[1], identity.fingerprint)
        with pytest.raises((LinkError, SettingsError)):
            pair(code, tmp_path / "device", name="home", device_name="robot", timeout_s=5)
        thread.join()
    assert PeerFile(tmp_path / "device", Server).read() == []


def _quietly(work: Any) -> None:
    with contextlib.suppress(OSError):
        work()


def test_a_wrong_secret_registers_nobody_and_voids_the_code(tmp_path: Path) -> None:
    with pairing_open(tmp_path / "server") as (code, served):
        guess = replace(code, secret=bytes(8))
        for left in reversed(range(TRIES)):
            with pytest.raises(LinkError, match=rf"(?s)refuses.*{left} tries are left"):
                pair(guess, tmp_path / "device", name="home", device_name="robot")
        assert served.result(PATIENCE_S) is None
        with pytest.raises(LinkError, match="pairing failed"):
            pair(code, tmp_path / "device", name="home", device_name="robot")
    assert PeerFile(tmp_path / "server", Device).read() == []


def test_a_code_that_is_too_old_closes_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "LIFETIME_S", 0.2)
    with pairing_open(tmp_path / "server") as (code, served):
        assert served.result(PATIENCE_S) is None
        with pytest.raises(LinkError, match="pairing failed"):
            pair(code, tmp_path / "device", name="home", device_name="robot")


def test_a_name_that_is_none_costs_no_code(tmp_path: Path) -> None:
    with pairing_open(tmp_path / "server") as (code, _):
        for names in ({"name": "a b", "device_name": "robot"}, {"name": "home", "device_name": "-"}):
            with pytest.raises(SettingsError, match="name"):
                pair(code, tmp_path / "device", **names)
        assert pair(code, tmp_path / "device", name="home", device_name="robot").name == "home"


def test_strangers_do_not_keep_the_device_out(tmp_path: Path) -> None:
    """Silent ones, ones without TLS, ones that send nonsense, and ones that begin and do not go on."""
    with pairing_open(tmp_path / "server") as (code, served), contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection((code.host, code.port), PATIENCE_S))

        silent = [connect() for _ in range(30)]
        connect().sendall(b"GET / HTTP/1.1\r\n\r\n")
        for sent in (b"", b"\xff\xff\xff\xff", b"\0\0\0\x05hello", pack_request(ROBOT, bytes(32))):
            with client_tls(None).wrap_socket(connect()) as secured:
                secured.sendall(sent)
        waiting = stack.enter_context(client_tls(None).wrap_socket(connect()))
        waiting.sendall(b"\0\0")
        pair(code, tmp_path / "device", name="home", device_name="robot")
        assert served.result(PATIENCE_S) is not None
        assert len(silent) == 30
    assert [device.name for device in PeerFile(tmp_path / "server", Device).read()] == ["robot"]


def test_tls_1_2_is_refused(tmp_path: Path) -> None:
    with (
        pairing_open(tmp_path / "server") as (code, _),
        socket.create_connection((code.host, code.port), PATIENCE_S) as raw,
        pytest.raises(ssl.SSLError),
    ):
        client_tls(None, ssl.TLSVersion.TLSv1_2).wrap_socket(raw)


def test_the_commands_pair_list_and_forget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["split", "peers"]) == 0
    assert "paired with nobody" in capsys.readouterr().out
    with pairing_open(tmp_path / "server") as (code, _):
        assert main(["split", "pair", *code.text().split("-")[:-1], code.text().split("-")[-1], "--name", "home"]) == 0
    assert "paired with home at 127.0.0.1:7410" in capsys.readouterr().out
    assert main(["split", "peers", "--json"]) == 0
    assert '"kind": "server", "name": "home", "address": "127.0.0.1:7410"' in capsys.readouterr().out
    assert main(["split", "peers", "forget", "home"]) == 0
    assert main(["split", "peers", "forget", "home"]) == 1
    assert "no peer is called 'home'" in capsys.readouterr().err
    assert main(["split", "pair", "nonsense"]) == 1
    assert "no pairing code" in capsys.readouterr().err


def test_the_door_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    identity = own_identity(tmp_path / "server", "server")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LinkError, match="cannot be served"):
        PairingDoor("127.0.0.1", taken.getsockname()[1], identity=identity, folder=tmp_path)


def test_a_server_that_cannot_pair_does_not_serve_first(
    tmp_path: Path, tiny_package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = ["--port", "0", "--pair-port", str(taken.getsockname()[1])]
        assert main(["split", "serve", str(tiny_package), "--host", "127.0.0.1", *ports]) == 1
    said = capsys.readouterr().err
    assert "this address cannot be served" in said
    assert "serving on" not in said


def test_a_server_runs_pairs_serves_and_ends_in_order(tmp_path: Path, tiny_package: Path) -> None:
    program = "import sys; from edgemem.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "split", "serve", str(tiny_package)]
    flags = ["--split", "1", "--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*command, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        text = next(line for line in process.stdout if "split pair" in line)
        server = pair(PairingCode.parse(text.split("pair")[1]), tmp_path / "device", name="home", device_name="robot")
        with pytest.raises(LinkError, match=r"(?s)different models.*device: weights abab"):
            Link.open(server, HELLO, identity=own_identity(tmp_path / "device", "device"), timeout_s=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert [line.split(" on ")[0] for line in said.splitlines()] == [
        "serving",
        "paired with robot",
        "finishing what is under way",
    ]
