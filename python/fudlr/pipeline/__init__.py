"""From a run and its options to an answer."""
