"""What everything may use, and each other: errors, files, progress, batches, processes."""
