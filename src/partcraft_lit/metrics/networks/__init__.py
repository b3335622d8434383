"""Frozen networks that metrics look through."""
