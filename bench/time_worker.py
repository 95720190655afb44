"""Asks one calculator for times, in its own interpreter: JSON in, JSON out. Used by bench/time_rivals.py.

    RIVAL_PYTHON bench/time_worker.py NAME < questions.json > answers.json

A question is a public run: model, device, batch, lengths, how the devices share the model, and what was measured
("latency_s" of a static batch, "tpot_ms" of a closed loop). An answer is in seconds, or None if the tool gives none.
Options are left at their defaults. Nothing here needs the network.
"""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "NO_COLOR": "1"}
logging.disable(logging.CRITICAL)
HERE = Path(sys.executable).parent


def genz(ask):
    from GenZ import decode_moddeling, prefill_moddeling

    device = {"Flops": ask["peak"] / 1e12, "Memory_size": ask["memory"] / 1e9, "Memory_BW": ask["bandwidth"] / 1e9,
              "ICN": ask["link"] / 1e9, "real_values": True}  # fmt: skip
    same = {"model": ask["genz"], "batch_size": ask["batch"], "input_tokens": ask["isl"], "system_name": device,
            "bits": "bf16", "tensor_parallel": ask["tp"], "debug": False}  # fmt: skip
    prompt_ms, step_ms = (
        made(**same, **more)["Latency"]
        for made, more in ((prefill_moddeling, {}), (decode_moddeling, {"output_tokens": ask["osl"]}))
    )
    return (prompt_ms + (ask["osl"] - 1) * step_ms) / 1e3


def llm_analysis(ask):
    from llm_analysis.analysis import infer

    found = infer(
        model_name=ask["llm_analysis"], gpu_name=ask["llm_analysis_gpu"], dtype_name="w16a16e16",
        batch_size_per_gpu=ask["batch"], seq_len=ask["isl"], num_tokens_to_generate=ask["osl"], tp_size=ask["tp"],
        log_level="ERROR",
    )  # fmt: skip
    return found["total_latency"]


def servcalc(ask):
    words = ["--gpu", ask["servcalc_gpu"], "--prompt", ask["isl"], "--gen", ask["osl"], "--concurrency", ask["batch"]]
    done = subprocess.run(
        [str(HERE / "servcalc"), "estimate", ask["config"], *map(str, words), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    point = json.loads(done.stdout)["points"][0]
    step_ms = point["itl_ms"]["mid"]
    if ask["metric"] == "tpot_ms":
        return step_ms / 1e3
    return (point["ttft_ms"]["mid"] + (ask["osl"] - 1) * step_ms) / 1e3


def ridgepoint(ask):
    words = ["fit", ask["ridgepoint"], "--gpu", ask["ridgepoint_gpu"], "--ctx", str(ask["isl"] + ask["osl"]), "--json"]
    done = subprocess.run([str(HERE / "ridgepoint"), *words], capture_output=True, text=True, check=True)
    speed = json.loads(done.stdout)["speed"]
    return speed["ttft_s"]["best"] + (ask["osl"] - 1) / speed["decode_tok_s"]["best"]


def aiconfigurator(ask):
    from aiconfigurator.cli.api import cli_estimate

    found = cli_estimate(
        ask["aiconfigurator"], ask["aiconfigurator_gpu"], mode="agg", backend_name=ask["engine"], isl=ask["isl"],
        osl=ask["osl"], batch_size=max(1, ask["batch"] // ask["dp"]), tp_size=ask["tp"] // ask["dp"],
        attention_dp_size=ask["dp"], moe_tp_size=ask["tp"] // ask["ep"], moe_ep_size=ask["ep"],
    )  # fmt: skip
    return found.tpot / 1e3


ASKED = {"genz-llm": genz, "llm-analysis": llm_analysis, "servcalc": servcalc, "ridgepoint": ridgepoint,
         "aiconfigurator": aiconfigurator}  # fmt: skip


def answer(name, ask):
    """Seconds, or None where the tool refuses in any way."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return float(ASKED[name](ask))
    except BaseException:  # what a tool raises is its own, and some exit
        return None


if __name__ == "__main__":
    asks = json.load(sys.stdin)
    if "--why" in sys.argv:
        print(ASKED[sys.argv[1]](asks[0]))
    else:
        json.dump([answer(sys.argv[1], ask) for ask in asks], sys.stdout)
