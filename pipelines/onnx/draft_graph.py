"""The draft head's step as an ONNX graph: see `runtime.formats.draft_graph` for its inputs and outputs.

The formulas are those of `runtime.speculation.redrafter.head`. Its weights stay in the head's file and the target's.
"""

from pathlib import Path

from onnx import ModelProto, TensorProto

from pipelines.onnx.builder import GraphBuilder, value
from pipelines.onnx.external import stored_tensors
from runtime.formats import draft_graph as names
from runtime.formats.checkpoint import EMBEDDING, LM_HEAD, WEIGHTS_FILE, Checkpoint
from runtime.speculation.redrafter.head_file import PREFIX, VOCAB_IDS, HeadConfig, read_description
from runtime.speculation.redrafter.head_file import WEIGHTS_FILE as HEAD_WEIGHTS_FILE
from runtime.speculation.redrafter.loading import check_fits


def write_draft_model(head_dir: Path, checkpoint: Checkpoint, dtype: str, folder: Path) -> Path:
    """Write `draft.onnx` of the head in `head_dir`, for the target `checkpoint`; weights are not copied.

    Raises:
        EnginewrightError: a damaged head, or one for another target.
    """
    config = read_description(head_dir).config
    check_fits(head_dir, config, checkpoint.spec)
    builder = GraphBuilder(dtype)
    builder.store(stored_tensors(head_dir / HEAD_WEIGHTS_FILE), names.HEAD_LOCATION)
    builder.store(stored_tensors(checkpoint.path / WEIGHTS_FILE), WEIGHTS_FILE)
    target_head = EMBEDDING if checkpoint.spec.tied_head else LM_HEAD
    lm_head = target_head if config.tied_head else PREFIX + "lm_head.weight"
    path = folder / names.DRAFT_GRAPH_FILE
    path.write_bytes(_draft_model(config, builder, lm_head).SerializeToString(deterministic=True))
    return path


def _draft_model(config: HeadConfig, to: GraphBuilder, lm_head: str) -> ModelProto:
    state = _advance(config, to)
    both = to.add("Concat", [names.CONTEXT, state], axis=1)
    hidden = to.linear(both, PREFIX + "input_proj.weight", PREFIX + "input_proj.bias")
    for block in range(config.num_blocks):
        layer = f"{PREFIX}layers.{block}.linear"
        hidden = to.add("Add", [hidden, to.silu(to.linear(hidden, f"{layer}.weight", f"{layer}.bias"))])
    rows = to.add("Gather", [to.stored(lm_head), to.stored(VOCAB_IDS)], "draft_lm_head")
    rows = to.cast(rows, to.stored_type(lm_head), to.type)
    to.add("Gemm", [hidden, rows], names.LOGITS, transB=1)
    sizes = dict.fromkeys((names.CONTEXT, names.EMBEDDED, names.STATE), config.hidden_size)
    return to.model(
        "draft_step",
        [*(value(name, to.type, ["rows", size]) for name, size in sizes.items()),
         *([value(names.IS_FIRST, TensorProto.BOOL, [1])] if config.dialect == "tensorrt_llm" else [])],
        [value(names.LOGITS, to.type, ["rows", config.draft_vocab_size]),
         value(names.NEW_STATE, to.type, ["rows", config.hidden_size])],
    )  # fmt: skip


def _advance(config: HeadConfig, to: GraphBuilder) -> str:
    """The state after the token that is read."""
    to.add("Gemm", [names.EMBEDDED, to.weight(PREFIX + "rnn_w.weight")], "driven", transB=1)
    to.add(
        "Gemm", [names.STATE, to.weight(PREFIX + "rnn_u.weight"), to.weight(PREFIX + "rnn_u.bias")], "carried", transB=1
    )
    if config.dialect == "apple":  # of the zero state the bias is left, as the formula has it
        to.add("Add", ["driven", "carried"], "summed")
        return to.add("Mul", ["summed", to.add("Sigmoid", ["summed"])], names.NEW_STATE)
    to.add("Add", ["driven", "carried"], "later")
    return to.add("Where", [names.IS_FIRST, "driven", "later"], names.NEW_STATE)
