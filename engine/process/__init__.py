"""The engine as a process: protocol, client, worker."""
