"""What is edited: fields, drafts, the study as a command line."""
