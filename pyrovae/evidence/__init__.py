"""log p(x), from below and from above."""
