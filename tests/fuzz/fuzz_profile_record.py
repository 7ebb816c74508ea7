"""Any text is a record of a profile run or refused; a record has figures, and can be written and read again."""

from __future__ import annotations

import json

import driver
from profile_records import KEY, cell, record, session

from edgemem.profiles.plain import parse_json
from edgemem.profiles.record import Telemetry
from edgemem.profiles.record_file import record_from_dict, record_to_dict
from edgemem.runtime.errors import EdgememError

_TELEMETRY = Telemetry(1.5, 20.0, 61.5, {"cpu": (2000.0, 2100.0)}, ())
_SESSIONS = [session(number, (1.0, 2.0), telemetry=_TELEMETRY) for number in range(2)]
SEEDS = [json.dumps(record_to_dict(whole)).encode() for whole in (record(), record(cell(KEY, _SESSIONS)))]


def fuzz_one_input(data: bytes) -> bool:
    try:
        whole = record_from_dict(parse_json(data.decode()))
    except (ValueError, EdgememError):
        return False
    if record_from_dict(record_to_dict(whole)) != whole:
        raise AssertionError("read back otherwise")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
