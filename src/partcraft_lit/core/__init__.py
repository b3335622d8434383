"""Types, errors, files, images, randomness, the store: what every room stands on."""
