"""Any bytes are a pairing's request or an error, and so is any text a code; what was read is written the same again."""

from __future__ import annotations

import driver

from edgemem.runtime.errors import ProtocolError, SettingsError
from edgemem.split.pairing import LENGTH_BYTES, pack_reply, pack_request, take_reply, take_request
from edgemem.split.pairing_code import PairingCode
from edgemem.split.peers import Device

_CODES = [
    PairingCode(host, 7411, bytes(range(16)), bytes(range(8)))
    for host in ("192.168.1.5", "2001:db8::5", "server.example.org")
]
SEEDS = [
    b"Q" + pack_request(Device("robot", bytes(range(200))), bytes(range(32)))[LENGTH_BYTES:],
    b"R" + pack_reply(7410, "robot")[LENGTH_BYTES:],
    b"R" + pack_reply(None, "the code is used up or too old")[LENGTH_BYTES:],
    *(b"C" + code.text().encode() for code in _CODES),
]


def fuzz_one_input(data: bytes) -> bool:
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"C":
            code = PairingCode.parse(rest.decode("latin-1"))
            same = PairingCode.parse(code.text()) == code
        elif kind == b"R":
            same = pack_reply(*take_reply(rest))[LENGTH_BYTES:] == rest
        else:
            same = pack_request(*take_request(rest))[LENGTH_BYTES:] == rest
    except (ProtocolError, SettingsError):
        return False
    if not same:
        raise AssertionError("it is not written as it was read")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
