"""CUDA C++ sources compiled at run time: NVRTC on NVIDIA, HIPRTC on AMD, both as PyTorch's GPU builds bring them.

No toolkit and no host compiler are needed. A source is compiled for the architecture at hand once, and its binary kept in a
private folder of the user's cache; a damaged entry is compiled anew. Kernels are ``extern "C" __global__ void``, their
parameters pointers, ``int``, ``unsigned``, ``long long``, ``unsigned long long`` or ``float``: launches pack their arguments
as the source declares them. A launch neither allocates nor waits, so it may be captured in a CUDA graph.

    module = load("rasterize.cu", device)
    module.launch("project", (blocks,), (256,), (means, colors, count, 0.5))
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...files import private_cache_folder

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
_FORMATS = {"int": "i4x", "unsigned": "I4x", "float": "f4x", "long long": "q", "unsigned long long": "Q", "*": "Q"}
_LOCK = threading.RLock()
_INVALID_CONTEXT = 201


class CompilerError(RuntimeError):
    """The run-time compiler, the driver or a kernel's source failed; one line, or a compiler's log."""


# --- libraries ----------------------------------------------------------------------------------------------------------


def _is_hip() -> bool:
    return torch.version.hip is not None


def _library_folders() -> Iterator[Path]:
    """Where PyTorch's wheels and their dependencies keep libraries."""
    yield Path(torch.__file__).parent / "lib"
    for root in dict.fromkeys([Path(torch.__file__).parent.parent, *(Path(p) for p in sys.path if p)]):
        for pattern in ("nvidia/cuda_nvrtc", "nvidia/cu[0-9]*", "nvidia/*"):
            for folder in sorted(root.glob(pattern), reverse=True):
                yield from (folder / "lib", folder / "bin", folder / "bin" / "x86_64")


def _compiler_names() -> tuple[list[str], list[str]]:
    """File names of the compiler as the system's loader finds them, and patterns within a folder, best first."""
    windows = sys.platform == "win32"
    if _is_hip():
        major, minor = (torch.version.hip or "0.0").split(".")[:2]
        if windows:
            return [f"hiprtc{int(major):02d}{int(minor):02d}.dll"], ["hiprtc[0-9]*.dll", "hiprtc.dll"]
        return [f"libhiprtc.so.{major}", "libhiprtc.so"], ["libhiprtc.so*"]
    major = (torch.version.cuda or "").split(".")[0]
    if windows:
        return [f"nvrtc64_{major}0_0.dll"] if major else [], [f"nvrtc64_{major or '*'}0_0.dll"]
    return [f"libnvrtc.so.{major}"] if major else [], [f"libnvrtc*.so.{major}*"]


@cache
def compiler_library() -> ctypes.CDLL:
    """NVRTC or HIPRTC, the version that this PyTorch is built for.

    Raises:
        CompilerError: where none is found.
    """
    names, patterns = _compiler_names()
    with suppress(ImportError, AttributeError, OSError, RuntimeError):  # AMD's wheels name their libraries themselves
        import rocm_sdk  # pyright: ignore[reportMissingImports]

        names = [str(p) for p in rocm_sdk.find_libraries("hiprtc")] + names
    found = [p for folder in dict.fromkeys(_library_folders()) for pattern in patterns for p in sorted(folder.glob(pattern))]
    found = [p for p in found if "builtins" not in p.name and ".alt." not in p.name]
    for path in [*found, *names]:
        with suppress(OSError):
            if isinstance(path, Path):
                if sys.platform == "win32":
                    os.add_dll_directory(str(path.parent))
                # NVRTC opens its built-in functions by their plain name.
                for builtins in path.parent.glob("*nvrtc-builtins*.so*"):
                    with suppress(OSError):
                        ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(str(path))
            log.debug("run-time compiler: %s", path)
            return library
    what = "HIPRTC (hiprtc)" if _is_hip() else "NVRTC (nvrtc)"
    raise CompilerError(f"the run-time compiler {what} of this PyTorch is not found, reinstall PyTorch with its GPU libraries")


@cache
def _driver() -> ctypes.CDLL:
    if _is_hip():
        if sys.platform == "win32":
            major = (torch.version.hip or "0").split(".")[0]
            names = [f"amdhip64_{major}.dll", "amdhip64.dll"]
        else:
            names = [*(str(p) for p in (Path(torch.__file__).parent / "lib").glob("libamdhip64.so*")), "libamdhip64.so"]
        with suppress(ImportError, AttributeError, OSError, RuntimeError):
            import rocm_sdk  # pyright: ignore[reportMissingImports]

            names = [str(p) for p in rocm_sdk.find_libraries("amdhip64")] + names
    else:
        names = ["nvcuda.dll"] if sys.platform == "win32" else ["libcuda.so.1", "libcuda.so"]
    for name in names:
        with suppress(OSError):
            return ctypes.CDLL(name)
    raise CompilerError(f"the GPU driver's library {names[-1]} cannot be loaded, install or update the driver")


def _check_driver(code: int, what: str) -> None:
    if code == 0:
        return
    if _is_hip():
        _driver().hipGetErrorString.restype = ctypes.c_char_p
        text = (_driver().hipGetErrorString(code) or b"").decode()
    else:
        pointer = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(pointer))
        text = (pointer.value or b"unknown error").decode()
    raise CompilerError(f"{what}: the GPU driver reports error {code} ({text})")


def driver_version() -> int:
    """Version of the GPU interface that the driver offers."""
    version = ctypes.c_int()
    (_driver().hipDriverGetVersion if _is_hip() else _driver().cuDriverGetVersion)(ctypes.byref(version))
    return version.value


# --- compiling ----------------------------------------------------------------------------------------------------------


@cache
def compiler_version() -> tuple[int, int]:
    """Major and minor version of the run-time compiler."""
    library, major, minor = compiler_library(), ctypes.c_int(), ctypes.c_int()
    (library.hiprtcVersion if _is_hip() else library.nvrtcVersion)(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def _supported() -> list[int]:
    """Architectures that NVRTC compiles for, as major * 10 + minor, ascending."""
    count = ctypes.c_int()
    compiler_library().nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    compiler_library().nvrtcGetSupportedArchs(found)
    return sorted(found)


def architecture(device: torch.device) -> str:
    """What to compile for on a device: "sm_89", "gfx1100", or "compute_90" where the driver has to finish the work.

    Raises:
        CompilerError: for a device older than all that the compiler knows.
    """
    properties = torch.cuda.get_device_properties(device)
    if _is_hip():
        return properties.gcnArchName
    own = properties.major * 10 + properties.minor
    known = _supported()
    if own in known and "ZLUDA" not in properties.name:  # ZLUDA translates PTX and reads no machine code
        return f"sm_{own}"
    older = [x for x in known if x <= own]
    if not older:
        known = f"NVRTC {'.'.join(map(str, compiler_version()))}"
        raise CompilerError(f"{properties.name} (compute capability {own / 10}) is older than what {known} compiles for")

    return f"compute_{older[-1]}"


def source_text(name: str | Path) -> tuple[str, dict[str, str]]:
    """A source by its name in this folder or its path, and the headers beside it and here that it includes, by name."""
    path = FOLDER / name  # an absolute path stays itself
    text, headers, queue = path.read_text(encoding="utf-8"), {}, []
    queue.append(text)
    while queue:
        for header in re.findall(r'^\s*#\s*include\s+"([^"]+)"', queue.pop(), re.MULTILINE):
            if header not in headers:
                file = path.parent / header
                headers[header] = (file if file.is_file() else FOLDER / header).read_text(encoding="utf-8")
                queue.append(headers[header])
    return text, headers


def compile_source(name: str | Path, target: str, options: Sequence[str] = ()) -> bytes:
    """The binary of a source for an architecture, see :func:`architecture`; PTX for "compute_*".

    Raises:
        CompilerError: with the compiler's log.
    """
    library, prefix = compiler_library(), "hiprtc" if _is_hip() else "nvrtc"
    text, headers = source_text(name)

    def call(function: str, *arguments: Any) -> int:
        return getattr(library, prefix + function)(*arguments)

    program, strings = ctypes.c_void_p(), ctypes.c_char_p * len(headers)
    bodies, names = strings(*(x.encode() for x in headers.values())), strings(*(x.encode() for x in headers))
    code = call("CreateProgram", ctypes.byref(program), text.encode(), Path(name).name.encode(), len(headers), bodies, names)
    if code:
        raise CompilerError(f"{name}: the run-time compiler does not start (error {code})")
    try:
        flags = [f"--offload-arch={target}", "-O3"] if _is_hip() else [f"--gpu-architecture={target}"]
        flags = [*flags, "--std=c++17", *options]
        code = call("CompileProgram", program, len(flags), (ctypes.c_char_p * len(flags))(*(x.encode() for x in flags)))
        if code:
            size = ctypes.c_size_t()
            call("GetProgramLogSize", program, ctypes.byref(size))
            written = ctypes.create_string_buffer(max(size.value, 1))
            call("GetProgramLog", program, written)
            what = written.value.decode(errors="replace").strip() or f"error {code}"
            if "builtins" in what or (code == 7 and not _is_hip()):
                what = f"the compiler's library libnvrtc-builtins is missing or of another version ({what})"
            raise CompilerError(f"{name}: does not compile for {target}: {what}")
        kind = "Code" if _is_hip() else "PTX" if target.startswith("compute") else "CUBIN"
        size = ctypes.c_size_t()
        call(f"Get{kind}Size", program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        call(f"Get{kind}", program, binary)
        return binary.raw
    finally:
        call("DestroyProgram", ctypes.byref(program))


@cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None, and compiled anew in each process, without a folder of the user's own."""
    return private_cache_folder("kernels")


def remembered(key: str) -> bytes | None:
    """What :func:`remember` has kept, or None where there is nothing or where it is damaged."""
    folder = cache_folder()
    if folder is None:
        return None
    try:
        held = (folder / key).read_bytes()
    except OSError:
        return None
    return held[32:] if hashlib.sha256(held[32:]).digest() == held[:32] else None


def remember(key: str, data: bytes) -> None:
    """Keep some bytes in the user's cache under a key; whoever reads at the same time gets all of it or nothing."""
    folder = cache_folder()
    if folder is None:
        return
    with suppress(OSError):
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(data).digest() + data)
            os.replace(name, folder / key)
        except OSError:
            os.unlink(name)


def source_key(name: str | Path, target: str, options: Sequence[str] = ()) -> str:
    """A hash of all that a binary depends on: source and headers, options, architecture, compiler."""
    text, headers = source_text(name)
    parts = [text, *(x for pair in sorted(headers.items()) for x in pair), target, *options]
    parts.append(f"{'hiprtc' if _is_hip() else 'nvrtc'} {compiler_version()}")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _binary(name: str | Path, target: str, options: Sequence[str]) -> bytes:
    key = source_key(name, target, options)
    binary = remembered(key)
    if binary is None:
        binary = compile_source(name, target, options)
        remember(key, binary)
    return binary


# --- modules ------------------------------------------------------------------------------------------------------------


def signatures(text: str) -> dict[str, list[str]]:
    """Kernels of a source with their parameters' kinds: a scalar type, or "*" for a pointer.

    Raises:
        CompilerError: for a parameter of another type.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    found = {}
    for name, parameters in re.findall(
        r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)', text
    ):
        kinds = []
        for parameter in filter(None, (x.strip() for x in parameters.split(","))):
            kind = "*" if "*" in parameter else " ".join(parameter.replace("const ", "").split()[:-1])
            if kind not in _FORMATS:
                raise CompilerError(f"kernel {name}: parameter '{parameter}' is neither a pointer nor a plain number")
            kinds.append(kind)
        found[name] = kinds
    return found


class _Kernel:
    """A function on a device with room for one launch's arguments."""

    def __init__(self, function: ctypes.c_void_p, kinds: list[str]) -> None:
        self.function = function
        self.pointers = [i for i, kind in enumerate(kinds) if kind == "*"]
        self.packing = struct.Struct("=" + "".join(_FORMATS[kind] for kind in kinds))
        self.values = ctypes.create_string_buffer(8 * max(len(kinds), 1))
        first = ctypes.addressof(self.values)
        self.slots = (ctypes.c_void_p * max(len(kinds), 1))(*(first + 8 * i for i in range(len(kinds))))
        self.shared = 48 << 10
        self.lock = threading.Lock()


class Module:
    """A compiled source on one device."""

    def __init__(self, name: str | Path, device: torch.device, options: Sequence[str] = ()) -> None:
        target = architecture(device)
        binary = _binary(name, target, options)
        self.device, self.index = device, device.index
        driver, self._handle = _driver(), ctypes.c_void_p()
        hip = _is_hip()
        with torch.cuda.device(device):
            torch.zeros((), device=device)  # PyTorch's context, which the module belongs to, is there and current
            if hip:
                code = driver.hipModuleLoadData(ctypes.byref(self._handle), binary)
            else:
                code = driver.cuModuleLoadData(ctypes.byref(self._handle), binary)
            _check_driver(code, f"{name} for {target}")
            self._context = ctypes.c_void_p()
            if not hip:
                _check_driver(driver.cuCtxGetCurrent(ctypes.byref(self._context)), "context")
            self._kernels = {}
            for kernel, kinds in signatures(source_text(name)[0]).items():
                function = ctypes.c_void_p()
                get = driver.hipModuleGetFunction if hip else driver.cuModuleGetFunction
                _check_driver(get(ctypes.byref(function), self._handle, kernel.encode()), f"{name}: {kernel}")
                self._kernels[kernel] = _Kernel(function, kinds)
        launch = driver.hipModuleLaunchKernel if hip else driver.cuLaunchKernel
        launch.argtypes = [ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._launch, self._stream, self._current = launch, torch._C._cuda_getCurrentRawStream, torch._C._cuda_getDevice

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared: int = 0) -> None:
        """Run a kernel on PyTorch's current stream of the device.

        Args:
            kernel: its name in the source.
            grid, block: one to three numbers; a grid without blocks launches nothing.
            args: one a parameter: contiguous tensors on the device, addresses or None for pointers, ints and floats. Tensors
                have to live until the launch has been queued, as PyTorch's allocator knows streams.
            shared: bytes of dynamic shared memory a block.

        Raises:
            CompilerError: for a launch that the driver refuses.
        """
        k = self._kernels[kernel]
        values = list(args)
        for i in k.pointers:
            value = values[i]
            if value.__class__ is not int:
                values[i] = 0 if value is None else value.data_ptr()
        gx, gy, gz = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
        bx, by, bz = block if len(block) == 3 else (*block, 1, 1)[:3]
        if not (gx and gy and gz):
            return
        index = self.index
        if self._current() != index:
            with torch.cuda.device(index):
                return self.launch(kernel, grid, block, args, shared)
        stream = self._stream(index)
        with k.lock:
            if shared > k.shared:
                self._allow_shared(k, shared)
            k.packing.pack_into(k.values, 0, *values)
            code = self._launch(k.function, gx, gy, gz, bx, by, bz, shared, stream, k.slots, None)
            if code == _INVALID_CONTEXT and not _is_hip():  # a thread that has not called CUDA before
                _driver().cuCtxSetCurrent(self._context)
                code = self._launch(k.function, gx, gy, gz, bx, by, bz, shared, stream, k.slots, None)
        if code:
            _check_driver(code, f"kernel {kernel}, grid {grid}, block {block}")
        return

    def _allow_shared(self, kernel: _Kernel, size: int) -> None:
        if _is_hip():
            code = _driver().hipFuncSetAttribute(kernel.function, 8, size)
        else:
            code = _driver().cuFuncSetAttribute(kernel.function, 8, size)
        _check_driver(code, f"{size} bytes of shared memory")
        kernel.shared = size


_modules: dict[tuple[Any, ...], Module] = {}


def load(name: str | Path, device: torch.device | str, options: Sequence[str] = ()) -> Module:
    """A source, by its name in this folder or its path, ready to launch on a device; compiled once.

    Args:
        name: of the source.
        device: a CUDA or ROCm device.
        options: of the compiler, for instance "-DWIDTH=8".

    Raises:
        CompilerError: where the compiler, the driver or the source fails.
    """
    device = torch.device(device)
    key = (name, device.type, device.index, tuple(options))
    found = _modules.get(key)
    if found is not None:
        return found
    with _LOCK:
        reason = why_not(device)
        if reason:
            raise CompilerError(reason)
        if device.index is None:
            found = load(name, torch.device("cuda", torch.cuda.current_device()), options)
            return found  # not kept: the current device may change
        _modules[key] = found = _modules.get(key) or Module(name, device, options)
        return found


def available(device: torch.device | str) -> bool:
    """Whether kernels can be compiled for a device and run on it."""
    return not why_not(device)


def why_not(device: torch.device | str) -> str:
    """The reason why kernels cannot run on a device in one line, or nothing."""
    device = torch.device(device)
    if device.type != "cuda":
        return "draws on CUDA and ROCm devices only"
    if torch.version.cuda is None and torch.version.hip is None:
        return "this PyTorch is built without CUDA and ROCm"
    if not torch.cuda.is_available():
        return "PyTorch finds no graphics card or its driver is too old"
    return _problem(torch.cuda.current_device() if device.index is None else device.index)


def compiles(source: Path, device: torch.device, options: tuple[str, ...] = ()) -> bool:
    """Whether the kernels of a source run on a device; else the log says once why PyTorch's own do its work."""
    if device.type != "cuda":
        return False
    return _compiles(source, torch.cuda.current_device() if device.index is None else device.index, options)


@cache
def _compiles(source: Path, index: int, options: tuple[str, ...]) -> bool:
    device = torch.device("cuda", index)
    try:
        load(source, device, options)
    except CompilerError as error:
        log.info("%s: by PyTorch's own kernels, %s", source.stem, why_not(device) or error)
        return False
    return True


@cache
def _problem(index: int) -> str:
    try:
        _driver()
        architecture(torch.device("cuda", index))
    except (CompilerError, AttributeError, AssertionError, RuntimeError) as error:
        return " ".join(str(error).split())[:200]
    return ""
