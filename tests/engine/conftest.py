"""These tests are many and small: threads of several test processes would only fight."""

import torch

torch.set_num_threads(1)
