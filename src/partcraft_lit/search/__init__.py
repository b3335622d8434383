"""Searches over settings: the space, the study that proposes trials and hears of them, and what came out.

Optuna proposes; it is an extra, so it is imported inside the functions that need it.
"""
