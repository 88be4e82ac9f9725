"""Launch a kernel as a plugin's description says, with its arguments as TensorRT passes them."""

import ctypes
from functools import cache

import torch

from plugins.cuda.driver import check, driver
from plugins.tensorrt_plugins import PluginLaunch, launch_ptx
from tests.plugins.cuda.emulator.run import emulate


def run_plugin(launch: PluginLaunch, inputs: list[torch.Tensor], outputs: list[torch.Tensor], device: str) -> None:
    """Run one launch: "cuda" from PTX through the driver, else in the emulator, forwards or "reverse"."""
    pointers = [[ctypes.c_void_p(tensor.data_ptr()) for tensor in group] for group in (inputs, outputs)]
    arguments = [*pointers[0], *map(ctypes.c_int32, launch.scalars), *pointers[1]]
    if device != "cuda":
        emulate(
            launch.source, launch.grid, launch.block, launch.shared_bytes, arguments, entry=launch.entry,
            reverse=device == "reverse", arch=800,
        )  # fmt: skip
        return
    values = tuple(argument.value for argument in arguments)
    types = tuple(type(argument) for argument in arguments)
    stream = torch.cuda.current_stream().cuda_stream
    status = driver().cuLaunchKernel(
        _function(launch), *launch.grid, launch.block, 1, 1, launch.shared_bytes, stream, (values, types), 0
    )
    check(f"launching {launch.entry}", status)


@cache
def _module(source, ptx):
    torch.zeros(1, device="cuda")  # torch's context is the current one
    return check(f"loading the PTX of {source.id}", driver().cuModuleLoadData(ptx))


@cache
def _function(launch: PluginLaunch):
    module = _module(launch.source, launch_ptx(launch) + b"\0")
    return check(f"finding {launch.entry}", driver().cuModuleGetFunction(module, launch.entry.encode()))
