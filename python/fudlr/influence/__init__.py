"""From gradients to scores, a mask and an updated vector: curvature, solvers, updates."""
