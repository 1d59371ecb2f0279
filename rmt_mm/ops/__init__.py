"""The operators of RMT."""
