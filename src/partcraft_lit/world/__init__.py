"""The embedded world: drawn creatures, their truth, and the networks that were trained on them."""
