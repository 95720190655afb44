"""What real servers reserve and report. Nothing here is imported by a plain ``memory``."""
