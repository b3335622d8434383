"""Judges of parts that know nothing of the codes that tokens were trained by."""
