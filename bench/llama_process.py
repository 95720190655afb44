"""Runs llama.cpp in a separate process and environment (bench/llama_worker.py) and talks to it in JSON lines."""

import json
import subprocess
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("llama_worker.py")


class LlamaEndedError(SystemExit):
    """llama.cpp has ended its process: it does so where something that it takes for granted is not so."""


class LlamaProcess:
    """The worker, until `close`."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer to a request. Raises LlamaEndedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LlamaEndedError(f"llama.cpp ended while it was to {request['do']} {request.get('name', '')}".rstrip())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
