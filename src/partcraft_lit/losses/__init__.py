"""Losses: pure functions, computed in float32 outside autocast, that return one value per sample."""
