"""From images to training batches: sources, latents, examples, loaders."""
