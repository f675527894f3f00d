"""Steering, ablation, effects and side effects: does what a detector reads drive what the model does?"""
