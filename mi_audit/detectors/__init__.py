"""Detectors: fitted, calibrated, read and controlled; what is learned is keyed by its spec and the model's root, and saved with a card."""
