"""Trained runs: their settings, their stored configuration, and their module with its weights."""
