"""llama.cpp: what it puts on each device and on the host, by build, and which split of a model fits."""
