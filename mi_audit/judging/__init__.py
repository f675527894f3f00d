"""What a run decides, held against its plan. Runs without torch: estimates come in through a function."""
