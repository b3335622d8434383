"""Scores of part composition, as torchmetrics."""
