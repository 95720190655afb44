"""Builds step.cpp (and its headers) with the machine's own C++ compiler and keeps the result. No torch here.

The library is cached in the user's cache folder under a name made from the source, the compiler, its flags and the CPU,
so that any change makes a new one. Two processes that need it at once take turns with a file lock.

KVSCOPE_INSTRUCTIONS limits the processor instructions that the library uses to those of other machines (`LIMITS`), for
tests.

    python -m engine.compiled.build

builds it with low priority, and continues if the process that started it ends (`build_apart`).
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

from engine.apart import apart, default_environment

SOURCE = Path(__file__).with_name("step.cpp")
COMPILERS = ("c++", "g++", "clang++")
# No -ffast-math: linking with it makes the whole process flush small numbers to zero. The source spells out what
# may be reordered by using vectors.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-w")
TUNINGS = ("-march=native", "-mcpu=native", "")
# The allowed instructions and their compiler flags. "native": everything this processor has. The others build, on this
# machine, what runs on machines without AMX, without byte products, without AVX-512, or without AVX-512 and AVX2.
_NO_AMX = ("-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile")
LIMITS = {
    "native": (),
    "without-amx": _NO_AMX,
    "without-vnni": (*_NO_AMX, "-mno-avx512vnni"),
    "without-avx512": (*_NO_AMX, "-mno-avx512f"),
    "baseline": None,  # the compiler's default for the platform
}
TIMEOUT_S = 600  # for a busy machine
NICENESS = 10  # tokens are generated meanwhile and need every core
_ERROR_CHARS = 400


class BuildError(Exception):
    """There is no compiler, or it failed; ``message`` is one or two sentences."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def cache_folder() -> Path:
    """The folder of the libraries; KVSCOPE_CACHE overrides the user's cache folder."""
    return Path(os.environ.get("KVSCOPE_CACHE") or platformdirs.user_cache_dir("kvscope")) / "compiled"


def cached_library(source: Path = SOURCE) -> ctypes.CDLL | None:
    """The library, if it is already built for this machine."""
    try:
        path = _library_path(source, find_compiler())
        return _open(path) if _is_whole(path) else None
    except (BuildError, OSError):
        return None


def build_library(source: Path = SOURCE) -> ctypes.CDLL:
    """The library, built if necessary. Raises BuildError."""
    compiler = find_compiler()  # no lock on Windows, which has no fcntl
    import fcntl

    path = _library_path(source, compiler)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, for any reason
            if not _is_whole(path):
                _build(source, compiler, path)
        return _open(path)
    except OSError as error:
        raise BuildError(f"the compiled step could not be stored or loaded: {error}") from None


def build_apart() -> ctypes.CDLL:
    """The library, built by a separate process: if this run ends earlier, the next one can use it. Raises
    BuildError."""
    find_compiler()
    builder = subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.compiled.build"],
        env=default_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        **apart(),
        encoding="utf-8",
    )
    said, _ = builder.communicate()
    library = cached_library() if builder.returncode == 0 else None
    if library is None:
        raise BuildError(said.strip() or f"the build ended with code {builder.returncode}")
    return library


def main() -> int:
    """Build; the exit code. A failure is one sentence on stdout."""
    import torch  # noqa: F401 (whose threading library the new one is to share: see `_link`)

    os.nice(NICENESS)
    try:
        build_library()
    except BuildError as error:
        with contextlib.suppress(BrokenPipeError):
            print(error.message, flush=True)
        return 1
    return 0


def find_compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, else the first of COMPILERS on the path. Raises BuildError."""
    if os.name != "posix":
        raise BuildError("the compiled step is built only on Linux and macOS; the layers of PyTorch run instead")
    chosen = shlex.split(os.environ.get("CXX", ""))
    names = [chosen] if chosen else [[name] for name in COMPILERS]
    for command in names:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    raise BuildError(f"there is no C++ compiler ({', '.join(command[0] for command in names)})")


def _library_path(source: Path, compiler: list[str]) -> Path:
    texts = [file.read_text(encoding="utf-8") for file in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, *FLAGS, *_tunings(), *compiler, _version(compiler), _cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return cache_folder() / f"step-{key}.so"


def _tunings() -> list[str]:
    """Flags for this processor, the first that the compiler accepts. Raises BuildError."""
    limit = os.environ.get("KVSCOPE_INSTRUCTIONS") or "native"
    if limit not in LIMITS:
        raise BuildError(f'KVSCOPE_INSTRUCTIONS "{limit}" is not known; use {", ".join(LIMITS)}')
    without = LIMITS[limit]
    return [""] if without is None else [" ".join((tuning, *without)) for tuning in TUNINGS]


def _version(compiler: list[str]) -> str:
    """Identifies the compiler without starting it (which would take longer than loading the library)."""
    real = Path(compiler[0]).resolve()
    status = real.stat()
    return f"{real} {status.st_size} {status.st_mtime_ns}"


def _cpu() -> str:
    """The machine's kind and the instructions its processor has."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.system()} {platform.machine()} {flags}"


def _build(source: Path, compiler: list[str], path: Path) -> None:
    """Compile and move into place; the file appears completely or not at all."""
    error = BuildError("the compiler was not started")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for tuning in _tunings():
            try:
                unit, library = Path(folder) / "step.o", Path(folder) / "step.so"
                _run([*compiler, *FLAGS, *tuning.split(), "-c", str(source), "-o", str(unit)])
                _link(compiler, unit, library)
                _sum_of(path).write_text(_digest(library), encoding="ascii")
                library.replace(path)
            except BuildError as failure:
                error = failure
            else:
                return
    raise error


def _link(compiler: list[str], unit: Path, library: Path) -> None:
    """Without its own threading library it uses torch's, so their threads do not compete."""
    _run([*compiler, "-shared", str(unit), "-o", str(library)])
    try:
        _open(library)
    except OSError:  # torch was built with another one
        _run([*compiler, "-shared", "-fopenmp", str(unit), "-o", str(library)])
        _open(library)


def _is_whole(path: Path) -> bool:
    """Whether the library is intact; a truncated one would crash the process that loads it."""
    try:
        return _sum_of(path).read_text(encoding="ascii") == _digest(path)
    except (OSError, UnicodeDecodeError):
        return False


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C++ compiler did not finish: {error}") from None
    if done.returncode:
        raise BuildError(f"the C++ compiler failed ({done.returncode}): {done.stderr.strip()[:_ERROR_CHARS]}")


if __name__ == "__main__":
    sys.exit(main())
