"""Charts: described once, drawn as text and as files."""
