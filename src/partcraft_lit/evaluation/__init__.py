"""How the scores of a run come about: what is asked for, drawn and read."""
