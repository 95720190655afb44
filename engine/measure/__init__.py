"""Measurements: evaluation, latency, batches, formats, this machine."""
