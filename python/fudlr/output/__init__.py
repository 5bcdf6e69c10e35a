"""A result as a folder, and elsewhere: written, exported, pushed."""
