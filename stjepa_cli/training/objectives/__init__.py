"""What a student learns to predict: one module per objective, found by its name."""
