"""The model under audit: where it comes from, its hook points, its digests and its self-check. Importing this package loads no torch."""
