"""Methods: which captions are trained on, and which vectors stand for the part tokens in them."""
