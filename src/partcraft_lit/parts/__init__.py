"""Finding parts: patch features -> foreground -> parts -> codes, and reading them off new images.

``raw``, ``efficientnet`` and ``dinov2`` describe patches; ``discovery`` fits a ``dictionary``; ``predictor`` reads
images with it; ``quality`` scores it where the truth is known; ``atlas`` draws it.
"""
