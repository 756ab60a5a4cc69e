"""The maths of the surrogate; knows tensors, not Optuna."""
