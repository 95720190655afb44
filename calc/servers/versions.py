"""What changed between versions of a server, and its defaults.

vLLM: engine/arg_utils.py (defaults by device and use; read of 0.26 to 0.33) and the start-up logs of 0.2.6 to 0.26 that
the tests compare with. SGLang: server_args.py of 0.4.9 to 0.5.23.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from calc.errors import SpecError
from calc.units import GIB

Version = tuple[int, ...]

MEASURED_VLLM = "0.19.0"
"""The default version, whose memory was measured part by part."""
VLLM_V1: Version = (0, 8)
VLLM_HYBRID: Version = (0, 9, 1)
VLLM_WHOLE_BLOCKS: Version = (0, 9, 1)
"""Before, concurrency was tokens / length; since then, it is computed from whole blocks of whole groups."""
VLLM_MLA_SMALL_BLOCKS: Version = (0, 12)
"""Before, latent attention used FlashMLA with blocks of 64; since then, FlashAttention on Hopper."""
VLLM_LATENT: Version = (0, 7, 1)
"""Before, keys and values of latent attention were cached for every head, padded to 256."""
VLLM_TRITON_EXPERTS: Version = (0, 12)
"""Since then, Triton's kernels for MXFP4 experts come with vLLM."""
VLLM_SPARSE_FP8_ROWS: Version = (0, 19)
"""Since then, Blackwell uses plain fp8 rows for sparse latent attention; before, every device used rows with scales."""
VLLM_CACHE_OF_CHECKPOINT: Mapping[str, Version] = {"modelopt": (0, 14), "compressed-tensors": (0, 15)}
"""Since then, a checkpoint's own cache format is used with --kv-cache-dtype auto, by its quantizer."""
SGLANG_CACHE_OF_CHECKPOINT: Mapping[str, Version] = {"modelopt": (0, 5, 6)}
SGLANG_BY_CHUNK: Version = (0, 5)
"""Since then, SGLang reserves by the tokens of a chunk; before, by a table of devices."""
SGLANG_PREFILL_GRAPHS: Version = (0, 5, 10)
"""Since then, prefill graphs are also captured."""
VLLM_LEAN_SAMPLER: Version = (0, 17)
VLLM_PIXELS_CAST: Version = (0, 9, 2)
"""Since then, pixels reach the device in the model's dtype; before, also in float32."""
VLLM_STATE_PER_SEQUENCE: Version = (0, 20)
"""Since then, vLLM does not start if --max-num-seqs exceeds the blocks for recurrent states."""
VLLM_GRAPHS_IN_BUDGET: Version = (0, 21)
VLLM_TOKENS_FROM_CONCURRENCY: Version = (0, 21)
VLLM_UTILIZATION_92: Version = (0, 22)
VLLM_STEPS_AT_ONCE: Version = (0, 26)
"""Since then, a window keeps the tokens of every step in flight: two with asynchronous scheduling, the default."""
VLLM_RUNNER_V2: Version = (0, 33)
"""Since then, a pipeline has one more step in flight than it has stages."""
VLLM_LARGEST_DEVICES: Version = (0, 28)
LARGE_DEVICE_BYTES = 70 * GIB
"""From this memory size upwards, except on an A100, vLLM uses more tokens and sequences per step."""
LARGEST_DEVICE_BYTES = 160 * GIB
"""From this memory size upwards, since 0.28, vLLM doubles the tokens per step again."""
NEWEST: Mapping[str, str] = {"vllm": "0.33", "sglang": "0.5.23"}
"""The newest version whose source was read."""
LOGGED_VLLM = ((0, 2, 6), (0, 26, 99))
"""Versions between these were compared with logs."""


def parse_version(text: str) -> Version:
    """The leading numbers of a version: "0.8.5.post1", "v0.11.0rc2.dev98+g39". Raises SpecError.

    >>> parse_version("v0.11.0rc2.dev98+g39"), parse_version("0.19")
    ((0, 11, 0), (0, 19))
    """
    match = re.match(r"v?(\d{1,6}(?:\.\d{1,6})*)", text.strip())
    if match is None:
        raise SpecError("engine_version", f"an engine version looks like 0.19.0, not {text[:40]!r}")
    return tuple(int(part) for part in match[1].split("."))


def version_remark(engine: str, text: str | None) -> str | None:
    """What is not known about a requested version: newer than any known one, or read but never measured."""
    if text is None or engine not in NEWEST:
        return None
    version, newest = parse_version(text), parse_version(NEWEST[engine])
    if version[: len(newest)] > newest:
        return f"{text} is newer than any known version: counted as {NEWEST[engine]}"
    if engine == "vllm" and not LOGGED_VLLM[0] <= version <= LOGGED_VLLM[1]:
        return f"no log of {text} was measured: defaults are from its source, overheads from similar versions"
    return None


def default_utilization(version: Version) -> Fraction:
    """vLLM's --gpu-memory-utilization."""
    return Fraction(92, 100) if version >= VLLM_UTILIZATION_92 else Fraction(9, 10)


def is_large(device: str, memory_bytes: int) -> bool:
    """Whether vLLM uses its larger defaults on this device (H100, H200, MI300X; not A100, nor GB10 by its logs)."""
    small = any(name in device.lower() for name in ("a100", "gb10", "spark"))
    return memory_bytes >= LARGE_DEVICE_BYTES and not small


def default_batched_tokens(version: Version, *, large: bool, memory_bytes: int = 0) -> int:
    """vLLM's --max-num-batched-tokens since V1."""
    if version >= VLLM_LARGEST_DEVICES and memory_bytes >= LARGEST_DEVICE_BYTES:
        return 16_384
    return 8192 if large else 2048


def steps_at_once(version: Version, pp: int) -> int:
    """Steps that vLLM counts as in flight when it sizes windows.

    >>> steps_at_once((0, 25, 1), 1), steps_at_once((0, 26), 1), steps_at_once((0, 33), 2)
    (1, 2, 3)
    """
    if version < VLLM_STEPS_AT_ONCE:
        return 1
    return pp + 1 if pp == 1 or version >= VLLM_RUNNER_V2 else pp


def default_max_seqs(version: Version, *, large: bool) -> int:
    """vLLM's --max-num-seqs."""
    return 1024 if large and version >= VLLM_V1 else 256
