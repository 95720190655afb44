"""The code that runs each measurement, one module per module of `engine.measure.kinds`. Needs torch."""
