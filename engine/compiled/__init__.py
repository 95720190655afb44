"""The whole decode step as one C++ function: built once in the background, the eager layers serving meanwhile."""
