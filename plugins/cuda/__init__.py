"""What every CUDA op shares: kernel sources, their compilation, the loaded images and the launch. Knows no op.

Every module here imports without a driver, without NVRTC and without cuda-python; what needs one says so when called.
"""
