"""Personalisation methods: captions, part token embeddings, trainable weights."""
