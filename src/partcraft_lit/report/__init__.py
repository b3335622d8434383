"""The report of a run: what it shows (content), and one HTML file that shows it (html)."""
