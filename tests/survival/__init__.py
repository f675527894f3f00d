"""What a run survives: `python -m tests.survival.kills`."""
