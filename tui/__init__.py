"""The kvscope command: a full-screen workbench, and its headless twin."""

__version__ = "0.2.0"
