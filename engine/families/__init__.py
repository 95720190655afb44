"""Model families: how their config files and weight names become the one `ModelConfig` and its names."""
