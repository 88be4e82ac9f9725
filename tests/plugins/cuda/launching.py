"""The kernels of launching.cu and their parameters, for the tests that launch them on a GPU and in the emulator."""

import ctypes
from pathlib import Path

from plugins.cuda.source import KernelSource

LAUNCHING = KernelSource("launching", str(Path(__file__).with_name("launching.cu")))


class LaunchingParams(ctypes.Structure):
    """Mirror of the struct in launching.cu."""

    _fields_ = (
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("counter", ctypes.c_void_p),
        ("num_words", ctypes.c_longlong),
        ("addend", ctypes.c_uint),
        ("padding", ctypes.c_uint),
    )
