"""Reports: renderings of a bundle of evidence, and of nothing else. Run without torch."""
