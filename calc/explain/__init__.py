"""Formulas that display themselves: traced terms and their closed forms."""
