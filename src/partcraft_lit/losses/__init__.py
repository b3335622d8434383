"""Losses as pure functions on tensors, computed in float32 outside autocast; one value per sample comes out."""
