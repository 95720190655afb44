"""The written answer: a report as data, built from the same numbers the panes show, and its two forms."""
