"""Formulas that show themselves: traced terms, and closed forms of them."""
