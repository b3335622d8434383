"""One package for each verb: its settings and what it does, from settings to files."""
