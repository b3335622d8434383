"""A drawn world with ground truth: creatures whose parts, looks and masks are known."""
