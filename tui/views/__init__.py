"""Pure functions from reports to tables, charts and sentences; no Textual."""
