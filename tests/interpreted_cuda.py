"""Import this before torch: where there is no NVIDIA GPU, the cuda engine then runs in Triton's interpreter.

Triton looks at the environment when it is first imported, and pytest imports every test file before it runs any.
"""

from __future__ import annotations

import os

from edgemem.runtime.cuda_support import cuda_support

INTERPRETED = cuda_support().gpu is None

if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton warns where it is left open
