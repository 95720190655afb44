"""The whole decode step as one C++ function, built once in the background while the eager layers serve."""
