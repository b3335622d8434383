"""Backbones: loading, text encoding with part tokens, LoRA, attention capture, sampling."""
