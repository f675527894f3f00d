"""The engine: prompts to tokens, tokens to batches, a forward pass per batch, activations reduced where read. Importing this package loads no torch."""
