// Entry points; ELEMENT: bfloat16 or float16.
#include "rows.cuh"

extern "C" __device__ const unsigned rows_params_bytes = sizeof(RowsParams);

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    rows_begin_kernel(__grid_constant__ const RowsParams params) {
    rows_begin<ELEMENT>(params);
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    rows_end_kernel(__grid_constant__ const RowsParams params) {
    rows_end<ELEMENT>(params);
}
