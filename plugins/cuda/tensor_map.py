"""Descriptions of matrices for the tensor copy engine of sm_90 and newer (include/tensor_copy.cuh)."""

import ctypes
from functools import lru_cache

from plugins.cuda.driver import check, driver

MAP_BYTES = 128
TILE_COLUMNS = 64  # 2-byte elements of a swizzled tile's row
_MOST_MAPS = 4096  # two for each layer of each cache in use


def encode_rows(address: int, rows: int, columns: int, box_rows: int) -> bytes:
    """Describe a contiguous (rows, columns) matrix of 2-byte elements, of which boxes (box_rows, 64) are copied.

    Raises:
        KernelError: no driver, or sizes that the engine does not take.
    """
    return encode_tensor(address, (columns, rows), (2 * columns,), (TILE_COLUMNS, box_rows))


@lru_cache(_MOST_MAPS)
def encode_tensor(
    address: int, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], most_bytes: int = 128
) -> bytes:
    """Describe a tensor of 2-byte elements, the innermost dimension first, of which boxes are copied to swizzled tiles.

    Args:
        address: a multiple of 16.
        sizes: of each dimension.
        strides: bytes, of each but the innermost, whose elements are contiguous.
        box: elements of a box in each dimension, of the innermost 64.
        most_bytes: contiguous bytes that a read brings into L2 at once: 128 or 256.

    Raises:
        KernelError: no driver, or sizes that the engine does not take.
    """
    cuda = driver()
    promotions = cuda.CUtensorMapL2promotion
    encoded = check(
        f"describing a tensor of {' x '.join(map(str, reversed(sizes)))}",
        cuda.cuTensorMapEncodeTiled(
            cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            len(sizes),
            address,
            [cuda.cuuint64_t(size) for size in sizes],
            [cuda.cuuint64_t(stride) for stride in strides],
            [cuda.cuuint32_t(size) for size in box],
            [cuda.cuuint32_t(1) for _ in box],
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            getattr(promotions, f"CU_TENSOR_MAP_L2_PROMOTION_L2_{most_bytes}B"),
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
    )
    return ctypes.string_at(encoded.getPtr(), MAP_BYTES)
