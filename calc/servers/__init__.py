"""What real servers reserve and report. Nothing here but their names is imported by a plain ``memory``."""
