"""Trains the embedded models from scratch: autoencoder, text encoder and UNet of the miniature Stable Diffusion."""
