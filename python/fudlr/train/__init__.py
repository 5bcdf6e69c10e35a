"""An adapter trained here: the training, its checkpoints, and small base models."""
