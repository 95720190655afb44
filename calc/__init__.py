"""The mathematics of LLM inference: parameters, bytes, FLOPs, batches, intensities. Pure functions, no torch."""
