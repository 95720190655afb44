"""`python -m engine`: the engine by itself, and `serve`, the process behind the app.

Stdout carries only data; progress and remarks go to stderr. Exit codes: 0 success, 1 a check failed, 2 bad input, 3 the
engine failed, 130 interrupted. torch is imported only after the options are checked.
"""

import argparse
import os
import sys
from collections.abc import MutableMapping, Sequence
from io import TextIOWrapper

from engine.commands.cli import PROG, parse, requests
from engine.errors import EngineError, EngineFailure

INTERRUPTED = 130
SPINS = "1000"
"""How often a torch thread polls for the next operation before it sleeps: some 20 microseconds."""


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads release their core soon. Call before torch is imported; a user's setting is kept.

    GNU OpenMP spins for milliseconds. If another program uses one of the cores, every operation then takes a whole time
    slice: with one busy process on two cores, the first token of a 7-token prompt took 2.8 s, and 0.15 s with this
    setting.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the options ask for; the exit code."""
    wait_briefly(os.environ)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a token that a code page lacks is replaced instead of ending the run
    try:
        args = parse(list(sys.argv[1:] if argv is None else argv))
        if args.serve is not None:
            from engine.process.worker import serve

            return serve()
        code = _run(args)
        sys.stdout.flush()
        return code
    except EngineError as error:
        print(f"{PROG}: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe: this is not an error. Python would report it again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    """Run one mode in this process."""
    from engine.commands.run import run

    todo = requests(args)
    try:
        from engine.process.service import Service  # torch
    except ImportError as error:
        raise EngineFailure(f"the engine needs PyTorch: {error}") from None
    if (args.tp or 1) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
        from engine.parallel.launch import follow_torchrun, follower_of_torchrun

        if follower_of_torchrun():
            return follow_torchrun(args.weights, args.dtype or "auto", args.device or "auto")
    service = Service()
    try:
        return run(args, todo, service.answer)
    finally:
        service.close()


if __name__ == "__main__":
    sys.exit(main())
