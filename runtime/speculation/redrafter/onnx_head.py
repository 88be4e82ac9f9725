"""The draft head on ONNX Runtime, for engines that carry its graph."""

from pathlib import Path

import torch

from runtime.formats import draft_graph as names
from runtime.formats.checkpoint import EMBEDDING, LM_HEAD, Checkpoint
from runtime.onnx_runtime import bind, dtype_of, open_graph, run_bound
from runtime.speculation.redrafter.drafter import ReDrafter
from runtime.speculation.redrafter.head_file import VOCAB_IDS, HeadConfig, read_head
from runtime.speculation.redrafter.loading import check_fits


class OnnxHead:
    """See `RunsHead`. One run gives states and logits, so `advance` keeps the logits until they are asked for.

    The rows that `advance` takes are those of `begin`, each as often as the search has beams, side by side.
    """

    def __init__(self, graph: Path, config: HeadConfig, values: dict[str, torch.Tensor], num_threads: int = 0) -> None:
        """values: the graph's weights by name, the head's and the target's.

        Raises:
            EnginewrightError: as `open_graph`.
        """
        self._config = config
        self._values = values
        self._session = open_graph(graph, graph.parent, num_threads, values)
        self._has_first = any(value.name == names.IS_FIRST for value in self._session.get_inputs())
        self.dtype = dtype_of(self._session.get_outputs()[0])
        self._context = torch.empty(0)
        self._logits = torch.empty(0)

    def begin(self, context: torch.Tensor) -> torch.Tensor:
        """Note the context (R, H) of the search that begins, and return it."""
        self._context = context
        return context

    def advance(self, embedded: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor:
        """Read one token: its embedding (R, H) and the state before it (R, H), None at the first -> (R, H)."""
        num_rows = len(embedded)
        context = self._context.repeat_interleave(num_rows // len(self._context), 0)
        inputs = {
            names.CONTEXT: context,
            names.EMBEDDED: embedded,
            names.STATE: torch.zeros_like(embedded) if state is None else state,
        }
        if self._has_first:
            inputs[names.IS_FIRST] = torch.tensor([state is None])
        new_state = torch.empty_like(embedded)
        self._logits = embedded.new_empty(num_rows, self._config.draft_vocab_size)
        binding = self._session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in inputs.items()}  # until the step has run
        for name, tensor in held.items():
            bind(binding.bind_input, name, tensor)
        bind(binding.bind_output, names.NEW_STATE, new_state)
        bind(binding.bind_output, names.LOGITS, self._logits)
        run_bound(self._session, binding)
        return new_state

    def logits(self, begun: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Logits (R, V_draft) of the states that `advance` gave last."""
        assert len(state) == len(begun) == len(self._logits), "the states are not those that were given last"
        return self._logits


def load_onnx_redrafter(graph: Path, head_dir: Path, checkpoint: Checkpoint) -> ReDrafter:
    """Load the head in `head_dir`, whose graph an engine carries, for the target `checkpoint`.

    Raises:
        EnginewrightError: a damaged file, a head for another target, or a graph that ONNX Runtime does not take.
    """
    description, tensors = read_head(head_dir)
    check_fits(head_dir, description.config, checkpoint.spec)
    target_head = EMBEDDING if checkpoint.spec.tied_head else LM_HEAD
    target = {name: tensor for name, tensor in checkpoint.tensors() if name in (EMBEDDING, target_head)}
    values = tensors | ({target_head: target[target_head]} if description.config.tied_head else {})
    head = OnnxHead(graph, description.config, values)
    return ReDrafter(head, target[EMBEDDING].to(head.dtype, copy=True), tensors[VOCAB_IDS].to(torch.int64))
