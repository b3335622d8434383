"""Figures, tables and the report of a run: what it shows (sections), and one HTML file that shows it (html)."""
