"""The command line of calc: options in, tables and JSON out."""
