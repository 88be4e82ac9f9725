"""The draft head on disk: `head.json` says what it is, `head.safetensors` holds it.

Tensors carry TensorRT-LLM's names, row-major (out, in); H is the target's hidden size, E the exit dimension:

    drafter.input_proj.weight, .bias        (E, 2 H), (E,)   over [context, state]
    drafter.layers.<i>.linear.weight, .bias (E, E), (E,)     residual blocks
    drafter.rnn_u.weight, .bias             (H, H), (H,)     over the previous state
    drafter.rnn_w.weight                    (H, H)           over the token's embedding
    drafter.lm_head.weight                  (V, E)           only where the head has rows of its own
    draft_vocab_ids                         (V_draft,) int32, ascending: the tokens that are drafted

A tied head has no rows of its own: it takes the target's, at `draft_vocab_ids`. Whether a head fits a target is the
loader's business.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from runtime.errors import EnginewrightError
from runtime.formats.digest import sha256_file
from runtime.speculation.tree import TreeShape

HEAD_FILE = "head.json"
WEIGHTS_FILE = "head.safetensors"
SCHEMA = 1
PREFIX = "drafter."
VOCAB_IDS = "draft_vocab_ids"
_NEAR_BEST = 0.97  # of the best accepted length
_FREE_BEAMS = 4  # on a GPU
_SIZES_BETWEEN = (16, 24)  # nodes; rows that GPU kernels take together
Dialect = Literal["apple", "tensorrt_llm"]


@dataclass(frozen=True)
class HeadConfig:
    """The sizes and the arithmetic of a head.

    Raises:
        EnginewrightError: a dialect that does not exist, or sizes that do not fit each other.
    """

    hidden_size: int
    exit_dim: int
    num_blocks: int
    vocab_size: int  # of the target
    draft_vocab_size: int
    tied_head: bool = True
    dialect: Dialect = "apple"

    def __post_init__(self) -> None:
        if self.dialect not in get_args(Dialect):
            raise EnginewrightError(
                f"draft head: dialect {self.dialect!r} is not one of {', '.join(get_args(Dialect))}"
            )
        for name in ("hidden_size", "exit_dim", "vocab_size", "draft_vocab_size"):
            if getattr(self, name) < 1:
                raise EnginewrightError(f"draft head: {name} is {getattr(self, name)}; it must be at least 1")
        if self.num_blocks < 0:
            raise EnginewrightError(f"draft head: num_blocks is {self.num_blocks}; it must be 0 or more")
        if self.draft_vocab_size > self.vocab_size:
            raise EnginewrightError(
                f"draft head: draft_vocab_size is {self.draft_vocab_size}; the target has {self.vocab_size} tokens"
            )
        if self.tied_head and self.exit_dim != self.hidden_size:
            raise EnginewrightError(
                f"draft head: exit_dim is {self.exit_dim}; tied to the target's head it must be {self.hidden_size}"
            )

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the head but the draft vocabulary, by name."""
        hidden, exit_dim = self.hidden_size, self.exit_dim
        shapes: dict[str, tuple[int, ...]] = {
            PREFIX + "input_proj.weight": (exit_dim, 2 * hidden),
            PREFIX + "input_proj.bias": (exit_dim,),
            PREFIX + "rnn_u.weight": (hidden, hidden),
            PREFIX + "rnn_u.bias": (hidden,),
            PREFIX + "rnn_w.weight": (hidden, hidden),
        }
        for block in range(self.num_blocks):
            shapes[f"{PREFIX}layers.{block}.linear.weight"] = (exit_dim, exit_dim)
            shapes[f"{PREFIX}layers.{block}.linear.bias"] = (exit_dim,)
        if not self.tied_head:
            shapes[PREFIX + "lm_head.weight"] = (self.vocab_size, exit_dim)
        return shapes


@dataclass(frozen=True)
class TreeStatistics:
    """What one tree shape was measured to give: tokens emitted per target step, greedy, over held-out prompts."""

    num_nodes: int
    num_beams: int
    depth: int
    accepted_length: Mapping[str, float]  # by kind of prompt, and "mean"
    acceptance: tuple[float, ...]  # share of steps that accept at least 1, 2, ... drafted tokens

    @property
    def shape(self) -> TreeShape:
        return TreeShape(self.num_nodes, self.num_beams, self.depth)


@dataclass(frozen=True)
class HeadDescription:
    """The contents of `head.json`."""

    config: HeadConfig
    base_name: str  # the model that the head was trained for
    base_digest: str  # of that model's source, see pipelines/draft/base.py
    recipe_digest: str
    trees: tuple[TreeStatistics, ...] = field(default=())


def worthwhile(trees: Sequence[TreeStatistics]) -> tuple[TreeStatistics, ...]:
    """One tree of each size: the one with the fewest beams times depth whose accepted length is near the best."""
    chosen = []
    for num_nodes in sorted({tree.num_nodes for tree in trees}):
        same = [tree for tree in trees if tree.num_nodes == num_nodes]
        enough = _NEAR_BEST * max(tree.accepted_length["mean"] for tree in same)
        near = [tree for tree in same if tree.accepted_length["mean"] >= enough]
        chosen.append(min(near, key=lambda tree: tree.num_beams * tree.depth))
    return tuple(chosen)


def worthwhile_on_gpus(trees: Sequence[TreeStatistics]) -> tuple[TreeShape, ...]:
    """The worthwhile trees, and of each size and depth, no deeper than these, the one that gives most with few beams.

    There a request alone drafts as fast with four beams as with one, and each depth costs as much as some rows of the
    target. Sizes that were not measured, between those that were, are among them.
    """
    chosen: dict[tuple[int, int], TreeStatistics] = {}
    for best in worthwhile(trees):
        for tree in trees:
            if tree.num_nodes != best.num_nodes or tree.depth > best.depth:
                continue
            if tree.num_beams <= max(best.num_beams, _FREE_BEAMS):
                place = tree.num_nodes, tree.depth
                chosen[place] = max(chosen.get(place, tree), tree, key=lambda one: one.accepted_length["mean"])
    shapes = list(dict.fromkeys(tree.shape for tree in (*worthwhile(trees), *chosen.values())))
    sizes: dict[tuple[int, int], list[int]] = {}
    for shape in shapes:
        sizes.setdefault((shape.num_beams, shape.depth), []).append(shape.num_nodes)
    between = [
        TreeShape(num_nodes, *beams)
        for num_nodes in _SIZES_BETWEEN
        for beams, known in sizes.items()
        if min(known) < num_nodes < max(known)
    ]
    return (*shapes, *between)


def write_head(folder: Path, description: HeadDescription, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write both files; `tensors` are those of `tensor_shapes` and the draft vocabulary."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights_path = folder / WEIGHTS_FILE
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, weights_path)
    fields = {"schema": SCHEMA, **asdict(description), "weights_sha256": sha256_file(weights_path)}
    (folder / HEAD_FILE).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def read_description(folder: Path) -> HeadDescription:
    """Read `head.json` alone.

    Raises:
        EnginewrightError: it is missing, damaged or of another schema.
    """
    path = folder / HEAD_FILE
    fields = _read_fields(path)
    try:
        trees = tuple(
            TreeStatistics(**{**tree, "acceptance": tuple(tree["acceptance"])}) for tree in fields.pop("trees")
        )
        config = HeadConfig(**fields.pop("config"))
        names = ("base_name", "base_digest", "recipe_digest")
        return HeadDescription(config, trees=trees, **{name: fields[name] for name in names})
    except (KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: not a draft head's description ({error!r}); train the head again") from error


def read_head(folder: Path) -> tuple[HeadDescription, dict[str, torch.Tensor]]:
    """Read a head and check it: digest, names, shapes, finite values, a sound draft vocabulary.

    Raises:
        EnginewrightError: one of these does not hold.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    description = read_description(folder)
    path = folder / WEIGHTS_FILE
    expected_digest = _read_fields(folder / HEAD_FILE).get("weights_sha256")
    try:
        digest = sha256_file(path)
        if digest != expected_digest:
            raise EnginewrightError(f"{path}: sha256 {digest}, {HEAD_FILE} says {expected_digest}; copy the head again")
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise EnginewrightError(f"{path}: unreadable ({error}); copy or train the head again") from error
    _check_tensors(path, description.config, tensors)
    return description, tensors


def _check_tensors(path: Path, config: HeadConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    shapes = {**config.tensor_shapes(), VOCAB_IDS: (config.draft_vocab_size,)}
    for name in sorted(shapes.keys() ^ tensors.keys()):
        problem = "is missing" if name in shapes else "has no place in this head"
        raise EnginewrightError(f"{path}: tensor {name} {problem}; train the head again")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise EnginewrightError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, {HEAD_FILE} needs {shapes[name]}; train it again"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise EnginewrightError(f"{path}: {name} holds NaN or infinite values; train the head again")
    ids = tensors[VOCAB_IDS].long()
    if bool((ids.diff() <= 0).any()) or int(ids[0]) < 0 or int(ids[-1]) >= config.vocab_size:
        raise EnginewrightError(
            f"{path}: {VOCAB_IDS} must ascend from 0 or more to below {config.vocab_size}; train the head again"
        )


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema = fields["schema"]
    except OSError as error:
        raise EnginewrightError(f"{path}: cannot be read ({error.strerror}); is this a draft head?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise EnginewrightError(f"{path}: not a draft head's description ({error!r}); train the head again") from error
    if schema != SCHEMA:
        raise EnginewrightError(f"{path}: schema {schema}, this version reads {SCHEMA}; train the head again")
    return dict(fields)
