"""A pytest plugin that puts another build of the native module, EDGEMEM_NATIVE_BUILD, in place of the installed one."""

from __future__ import annotations

import importlib.util
import os
import sys

_spec = importlib.util.spec_from_file_location("edgemem.kernels._native", os.environ["EDGEMEM_NATIVE_BUILD"])
if _spec is None or _spec.loader is None:
    raise ImportError(os.environ["EDGEMEM_NATIVE_BUILD"])
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
sys.modules["edgemem.kernels._native"] = _module
