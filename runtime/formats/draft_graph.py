"""The contract of a draft head's graph, `draft.onnx`: one step of the recurrent head for R rows, all independent.

    context     (R, H), the target's final hidden state that emitted the first token
    embedded    (R, H), the target's input embedding of the token that is read now
    state       (R, H), of the token before; zeros at the first
    is_first    (1,) bool, whether there is no token before; only where a zero state does not say so (`tensorrt_llm`)

    draft_logits  (R, V_draft), of the next token
    new_state     (R, H)

Its weights are two files': the head's own, and the target's LM head where the head has no rows of its own.
"""

DRAFT_GRAPH_FILE = "draft.onnx"
CONTEXT = "context"
EMBEDDED = "embedded"
STATE = "state"
IS_FIRST = "is_first"
LOGITS = "draft_logits"
NEW_STATE = "new_state"
HEAD_LOCATION = "draft/head.safetensors"  # of the head's weights, relative to the bundle
