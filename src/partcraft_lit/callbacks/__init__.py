"""Lightning callbacks. Attention losses add a term to the loss; training is the same without the others."""
