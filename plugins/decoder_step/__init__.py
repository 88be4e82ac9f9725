"""A decoder's whole step, from token ids to logits, in one launch: for the few rows of decode and of draft trees.

`plan.supports` says whether it can take a model; `cuda.DecoderStep` runs it; `reference.py` is its meaning.

A step has R rows of B requests. Request b owns rows query_starts[b] : query_starts[b + 1], which are the last of its
context_lens[b] tokens; their keys and values are written to its blocks. They are a chain, each seeing all before it, or
the nodes of a draft tree. All indices are int64 and lie on the device, so that a captured graph sees new values.

    token_ids     (R,)
    positions     (R,) of each row in its request's text: a tree's root plus the node's depth
    query_starts  (B + 1,), from 0 to R
    context_lens  (B,) tokens in the cache once the step has run
    block_tables  (B, max_blocks), padded with any value
    ancestors     (B, N) or None: bit j of node i says that i sees j, itself included; 0 for a request without a tree
    logits        (R, V) float32, written
    hidden        (R, H) float32, written: after the final norm

Weights and cache are bfloat16; the residual stream and all sums are float32, and what enters a product is rounded to
bfloat16. A row's result is the same bit for bit whatever other rows the step has. Rows that stand for nothing are
requests of their own with context_lens 1 and a block that nobody reads.
"""
