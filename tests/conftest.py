"""Settings for all tests."""

import torch

# Tiny models gain nothing from threads, and spinning ones starve whatever else the machine runs.
torch.set_num_threads(1)
