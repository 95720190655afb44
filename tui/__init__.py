"""The kvscope command: a full-screen workbench, and its headless twin."""
