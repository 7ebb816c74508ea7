"""Any bytes are a safetensors file or a PackageError; tensors that are accepted lie inside the file, one by one."""

from __future__ import annotations

from pathlib import Path

import driver
from small_packages import join_weights

from edgemem.runtime.errors import PackageError
from edgemem.runtime.tensor_file import TensorFile

_TWO = {
    "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b.codes": {"dtype": "U8", "shape": [4, 1, 16], "data_offsets": [12, 76]},
}
SEEDS = [
    join_weights(_TWO, bytes(76)),
    join_weights({**_TWO, "__metadata__": {"format": "pt"}}, bytes(76)),
    join_weights({}, b""),
]


def fuzz_one_input(data: bytes) -> bool:
    with driver.in_memory_file(data) as descriptor:
        try:
            opened = TensorFile.open(Path("fuzz"), error=PackageError, descriptor=descriptor)
        except PackageError:
            return False
    with opened:
        covered = 0
        for name, entry in opened.tensors.items():
            array = opened.array(name)
            if not 0 <= entry.start <= entry.stop <= len(data) or array.nbytes != entry.stop - entry.start:
                raise AssertionError(f"tensor {name!a} is not where it says")
            covered += array.nbytes
            array.tobytes()
        if covered + 8 + int.from_bytes(data[:8], "little") != len(data):
            raise AssertionError("bytes that no tensor owns")
    return True


if __name__ == "__main__":
    driver.main(fuzz_one_input, SEEDS)
