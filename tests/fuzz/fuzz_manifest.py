"""Any text is a manifest or a PackageError; a manifest read can be written and read again."""

from __future__ import annotations

import driver
from small_packages import part_manifest, small_manifest, small_model

from edgemem.runtime.errors import FileError
from edgemem.runtime.manifest_yaml import dump, load, seal

_SEAL_BYTES = len(seal(b""))
SEEDS = [
    dump(small_manifest())[:-_SEAL_BYTES],
    dump(small_manifest(small_model(tied_head=True, qk_norm=True)))[:-_SEAL_BYTES],
    dump(part_manifest(small_manifest(), 1, 3))[:-_SEAL_BYTES],
]


def fuzz_one_input(data: bytes) -> bool:
    try:
        manifest = load(seal(data), where="fuzz")
    except FileError:
        return False
    if load(dump(manifest), where="fuzz") != manifest:
        raise AssertionError("read back otherwise")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
