"""The contract of a step's graph, `model.onnx` and what is built from it: its inputs and outputs by name.

B requests with S new tokens each, dense; Smax cache rows a request, static; R rows of which logits are wanted:

    token_ids       (B, S) int64
    position_ids    (B, S) int64, in the text; of a tree's nodes, the root's plus their depths
    write_starts    (B,) int64, the cache row of each request's first new token; write_starts + S <= Smax
    attention_mask  (B, 1, S, M) bool, true where a new token sees a cache row, its own included; M is Smax, or any
                    number up to it where the graph slices its caches
    logit_rows      (R,) int64, of the B * S tokens in one row
    k_cache_<layer>, v_cache_<layer>  (B, N_kv, Smax, D)

    logits          (R, V) float32, or float64 where the weights are
    hidden          (R, H), after the final norm, same dtype
    new_k_cache_<layer>, new_v_cache_<layer>  the caches with S rows of each request written; a runtime binds them to
                    the buffers of the inputs, so that they change in place

A row that no key is visible to is undefined: padding rows see at least their own key.
"""

from collections.abc import Iterator

GRAPH_FILE = "model.onnx"
TOKEN_IDS = "token_ids"
POSITION_IDS = "position_ids"
WRITE_STARTS = "write_starts"
ATTENTION_MASK = "attention_mask"
LOGIT_ROWS = "logit_rows"
INPUTS = (TOKEN_IDS, POSITION_IDS, WRITE_STARTS, ATTENTION_MASK, LOGIT_ROWS)
LOGITS = "logits"
HIDDEN = "hidden"
NEW = "new_"  # before a cache's name: what the step leaves of it


def cache_names(num_layers: int) -> Iterator[str]:
    """The caches in the order of `KVCache.storage`: K and V of layer 0, of layer 1, ..."""
    for layer in range(num_layers):
        yield from (f"k_cache_{layer}", f"v_cache_{layer}")
