"""Descriptions of matrices for the tensor copy engine of sm_90 and newer (include/tensor_copy.cuh)."""

import ctypes
from functools import lru_cache

from plugins.cuda.driver import check, driver

MAP_BYTES = 128
TILE_COLUMNS = 64  # 2-byte elements of a swizzled tile's row
_MOST_MAPS = 4096  # two for each layer of each cache in use


@lru_cache(_MOST_MAPS)
def encode_rows(address: int, rows: int, columns: int, box_rows: int) -> bytes:
    """Describe a contiguous (rows, columns) matrix of 2-byte elements, of which boxes (box_rows, 64) are copied.

    Raises:
        KernelError: no driver, or sizes that the engine does not take.
    """
    cuda = driver()
    encoded = check(
        f"describing a matrix of {rows} x {columns}",
        cuda.cuTensorMapEncodeTiled(
            cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_UINT16,
            2,
            address,
            [cuda.cuuint64_t(columns), cuda.cuuint64_t(rows)],
            [cuda.cuuint64_t(2 * columns)],
            [cuda.cuuint32_t(TILE_COLUMNS), cuda.cuuint32_t(box_rows)],
            [cuda.cuuint32_t(1), cuda.cuuint32_t(1)],
            cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
            cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
    )
    return ctypes.string_at(encoded.getPtr(), MAP_BYTES)
