"""Our GPU kernels on the CPU: the same sources compiled by the system's C++ compiler, launched as ``compiler.Module`` is."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anchor4d.core.render.nvrtc import compiler

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="no C++ compiler with fibers (g++ or clang++)")
_TYPES = {"*": ctypes.c_void_p, "int": ctypes.c_int, "unsigned": ctypes.c_uint, "float": ctypes.c_float}
_TYPES |= {"long long": ctypes.c_longlong, "unsigned long long": ctypes.c_ulonglong}


class HostModule:
    """A source compiled for the CPU; the tensors that it is launched with have to be there."""

    def __init__(self, name: str | Path, options: Sequence[str] = ()) -> None:
        text = compiler.source_text(name)[0]
        self.kernels = compiler.signatures(text)
        path = compiler.FOLDER / name
        lines = [f'#include "{Path(__file__).parent / "shim" / "device.h"}"', f'#include "{path}"']
        for kernel, kinds in self.kernels.items():
            kinds = ["void*" if kind == "*" else kind for kind in kinds]
            given = ", ".join(f"{kind} a{i}" for i, kind in enumerate(kinds))
            # Arguments that the fibers read while they run; a pointer converts to whatever the kernel declares.
            lines += [f"static {kind} {kernel}_{i};" for i, kind in enumerate(kinds)]
            passed = ", ".join(f"Any{{{kernel}_{i}}}" if kind == "void*" else f"{kernel}_{i}" for i, kind in enumerate(kinds))
            lines += [
                f'extern "C" void run_{kernel}(unsigned* grid, unsigned* block, {given}) {{',
                *(f"    {kernel}_{i} = a{i};" for i in range(len(kinds))),
                "    shim::run({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, "
                f"[] {{ {kernel}({passed}); }});",
                "}",
            ]
        lines.insert(2, "struct Any { void* at; template <class T> operator T*() const { return (T*)at; } };")
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "host.cpp", Path(folder) / "host.so"
            source.write_text("\n".join(lines) + "\n")
            flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]
            flags += [f"-I{compiler.FOLDER}", *options]
            done = subprocess.run([str(COMPILER), *flags, source, "-o", library], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            self.library = ctypes.CDLL(str(library))

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0) -> None:
        assert shared == 0, "the shim has no dynamic shared memory"
        function, kinds = getattr(self.library, f"run_{kernel}"), self.kernels[kernel]
        assert len(args) == len(kinds), f"{kernel}: {len(args)} arguments for {len(kinds)} parameters"
        sizes = [(ctypes.c_uint * 3)(*x, *[1] * (3 - len(x))) for x in (grid, block)]
        values = []
        for value, kind in zip(args, kinds, strict=True):
            if isinstance(value, Tensor):
                assert kind == "*" and value.is_contiguous() and value.device.type == "cpu"
                value = value.data_ptr()
            values.append(_TYPES[kind](value))
        function(*sizes, *values)


@functools.cache
def host_module(name: str | Path, options: tuple[str, ...] = ()) -> HostModule:
    return HostModule(name, options)


def load(name: str | Path, device: torch.device | str, options: Sequence[str] = ()) -> HostModule:
    """What takes the place of ``compiler.load`` in a test."""
    return host_module(name, tuple(options))
