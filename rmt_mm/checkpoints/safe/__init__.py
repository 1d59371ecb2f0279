"""Read files without executing them."""
