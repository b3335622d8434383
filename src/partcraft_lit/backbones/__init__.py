"""Text-to-image models in parts: loading, text with part tokens, adapters, attention capture, sampling."""
