"""The composer in Python: open a run, look at its parts, choose some, draw them together."""
