"""A llama.cpp server on 127.0.0.1 for bench/simulate_server.py: prints its address, serves until stdin ends.

Runs in a separate environment, with xllamacpp and without this project.
"""

import sys

import xllamacpp as llama

MODEL, SLOTS, THREADS, CONTEXT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

params = llama.CommonParams()
params.model.path = MODEL
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_parallel, params.n_ctx = SLOTS, SLOTS * CONTEXT
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
params.n_gpu_layers = 0
params.cache_prompt, params.cache_ram_mib = False, 0
params.verbosity = 0
server = llama.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
