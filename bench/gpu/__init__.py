"""What the CUDA engine reaches on an NVIDIA GPU, beside baselines taken in the same process."""
