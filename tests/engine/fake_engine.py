"""A stand-in for the engine process, for the tests of its client: no torch, starts at once.

What it does with a Generate is said by the prompt: "tokens:N", "hang" (until cancelled), "exit:CODE",
"signal:NUMBER", "garbage", "flood:N", "deaf" (stops reading and ignores SIGTERM), "cwd", "close-stdout".
"""

import os
import signal
import sys
import time

from engine.generation_events import GenerationFinished, TokenGenerated
from engine.process.events import Cancel, Failed, Generate, Ready, Shutdown, decode_request, encode
from engine.records import Load


def send(*records):
    sys.stdout.buffer.write(b"".join(map(encode, records)))
    sys.stdout.buffer.flush()


def finished(request_id, *, ids=(), text="", reason="length"):
    return GenerationFinished(
        request_id=request_id,
        reason=reason,
        prompt_ids=(1,),
        ids=tuple(ids),
        text=text,
        start_ns=0,
        token_times_ns=tuple(range(len(ids))),
        kv_cache_bytes=0,
    )


def tokens(request_id, count):
    for i in range(count):
        send(
            TokenGenerated(
                request_id=request_id, index=i, token_id=i, text="x", time_ns=i, kv_tokens=i, kv_used_bytes=i
            )
        )


def generate(request):
    word, _, argument = (request.prompt or "").partition(":")
    number = request.request_id
    if word == "tokens":
        tokens(number, int(argument))
        send(finished(number, ids=range(int(argument))))
    elif word == "exit":
        print("first words", file=sys.stderr)
        print(f"ValueError: leaving with {argument}", file=sys.stderr, flush=True)
        os._exit(int(argument))
    elif word == "signal":
        os.kill(os.getpid(), int(argument))
    elif word == "garbage":
        sys.stdout.write("Hello from a library\n")
        sys.stdout.flush()
    elif word == "cwd":
        send(finished(number, text=f"{os.getcwd()}|{os.getsid(0)}|{os.getpid()}"))
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tokens(number, 1)
        time.sleep(600)
    elif word == "close-stdout":
        os.close(1)
        time.sleep(600)
    elif word == "hang":
        tokens(number, 1)
    else:
        send(Failed(request_id=number, kind="input", message=f"unknown word {word}"))


def main():
    send(Ready(pid=os.getpid(), torch_version="none", device="cpu", threads=1))
    for line in sys.stdin.buffer:
        request = decode_request(line)
        if isinstance(request, Generate):
            generate(request)
        elif isinstance(request, Cancel):
            send(finished(request.target_id, reason="cancelled"))
        elif isinstance(request, Load):
            send(Failed(request_id=request.request_id, kind="input", message=f"no model {request.model}"))
        elif isinstance(request, Shutdown):
            return


if __name__ == "__main__":
    main()
