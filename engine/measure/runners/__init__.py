"""What carries a measurement out, one module for each of `engine.measure.kinds`. Needs torch."""
