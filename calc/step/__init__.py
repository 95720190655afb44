"""What one pass of a model does: its operators, each with its FLOPs and the bytes it reads and writes."""
