"""Sparse autoencoders: their weights, how they encode and decode, and how well they stand for the activations of the model under audit."""
