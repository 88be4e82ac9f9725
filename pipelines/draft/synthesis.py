"""Training data from the target alone: it writes user turns into its bare chat template, and answers them.

All sequences advance in lockstep, one token a step; a sequence whose answer has ended starts another conversation at
once, so no step is wasted. The loop asks nothing of the host, and on CUDA a step is one graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pipelines.draft.corpus import Corpus
from pipelines.draft.lockstep import Lockstep
from pipelines.draft.target import TargetModel
from plugins.sample import sample
from runtime.errors import EnginewrightError
from runtime.text.tokenizer import Tokenizer

SENTINEL = "0123456789"  # stands for the user's words while the template is taken apart
SCRIPT, USER, ANSWER = 0, 1, 2  # who chooses a sequence's next token: a script, or the target in one of two roles


@dataclass(frozen=True)
class SynthesisSettings:
    """Conversations: `user_tokens` and `answer_tokens` bound the two turns. Temperatures above 0 draw, 0 is greedy."""

    num_sequences: int
    num_steps: int
    seed: int = 0
    user_tokens: int = 48
    answer_tokens: int = 160
    user_temperature: float = 1.0
    answer_temperature: float = 0.7
    greedy_share: float = 0.75  # of the answers
    min_p: float = 0.03  # tokens less likely than this times the most likely one are not drawn


class Scripts(NamedTuple):
    """What is not the target's choice: how conversations open, one script each, and last what ends the user's turn."""

    token_ids: torch.Tensor  # (Q, longest) int64
    lengths: torch.Tensor  # (Q,) int64


def make_scripts(tokenizer: Tokenizer, openings: list[str], device: torch.device) -> Scripts:
    """Each opening, the first words of a user's turn, behind what the template writes before it.

    Raises:
        EnginewrightError: the model has no chat template, or one that does not show the user's words once.
    """
    whole = tokenizer.encode_chat([{"role": "user", "content": SENTINEL}])
    text = tokenizer.decode(whole, skip_special_tokens=False)
    before, middle, after = text.partition(SENTINEL)
    if not middle or SENTINEL in after:
        raise EnginewrightError("draft data: the chat template does not show the user's words once; use texts instead")
    rows = [tokenizer.encode(before + opening, add_special_tokens=False) for opening in openings]
    rows.append(tokenizer.encode(after, add_special_tokens=False))
    lengths = torch.tensor([len(row) for row in rows], device=device)
    padded = [row + [0] * (int(lengths.max()) - len(row)) for row in rows]
    return Scripts(torch.tensor(padded, device=device), lengths)


class _State(NamedTuple):
    """Per sequence (B,): the token that is read next and where it stands, and who chooses what follows it."""

    token: torch.Tensor
    position: torch.Tensor
    chooser: torch.Tensor
    script: torch.Tensor
    script_next: torch.Tensor  # index into the script
    turn_len: torch.Tensor  # tokens chosen in this turn
    temperature: torch.Tensor  # of this conversation's answer
    conversation: torch.Tensor  # its number, which no other has
    is_answer: torch.Tensor  # bool, `token` was chosen in an answer
    ends: torch.Tensor  # bool, `token` is the conversation's last


class Synthesis:
    """One run of `num_sequences` sequences; `step` reads a token of each and chooses the next."""

    def __init__(
        self, target: TargetModel, scripts: Scripts, eos_token_ids: frozenset[int], settings: SynthesisSettings
    ) -> None:
        self.target, self.scripts, self.settings = target, scripts, settings
        device, count = target.device, settings.num_sequences
        longest = int(scripts.lengths[:-1].max()) + settings.user_tokens + int(scripts.lengths[-1])
        self.room = longest + settings.answer_tokens + 1
        if self.room > target.spec.max_position_embeddings:
            raise EnginewrightError(
                f"draft data: conversations take up to {self.room} tokens, the model's context holds "
                f"{target.spec.max_position_embeddings}; lower draft.train.answer_tokens"
            )
        self._lockstep = Lockstep(target, count, self.room)
        self._eos = torch.tensor(sorted(eos_token_ids), device=device)
        self.hidden = torch.zeros(count, target.spec.hidden_size, dtype=target.dtype, device=device)
        numbers, ones = torch.arange(count, device=device), torch.ones(count, device=device)
        zeros = torch.zeros_like(numbers)
        self._filters = (zeros, ones, settings.min_p * ones, zeros + settings.seed)  # top_k, top_p, min_p, seed
        torch.manual_seed(settings.seed)
        self.state = _State(*(part.clone() for part in self._opening(numbers - count)))  # parts of an opening are one

    def restart(self) -> None:
        """Begin a new conversation in every sequence."""
        for held, new in zip(self.state, self._opening(self.state.conversation), strict=True):
            held.copy_(new)

    def step(self) -> None:
        """Read the state's tokens, leave their hidden states in `hidden`, and move the state on; all in place."""
        state = self.state
        output = self._lockstep.read(state.token, state.position)
        self.hidden.copy_(output.hidden)
        chosen = self._choose(output.logits)
        for held, new in zip(state, self._advance(chosen), strict=True):
            held.copy_(new)

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw each sequence's token at its temperature."""
        state = self.state
        temperature = torch.where(state.chooser == USER, self.settings.user_temperature, state.temperature)
        return sample(
            logits, temperature, *self._filters, state.conversation, state.position + 1, torch.empty_like(state.token)
        )

    def _advance(self, chosen: torch.Tensor) -> _State:
        state, scripts, settings = self.state, self.scripts, self.settings
        closing = len(scripts.lengths) - 1
        scripted = state.chooser == SCRIPT
        in_user, in_answer = state.chooser == USER, state.chooser == ANSWER
        turn_len = torch.where(scripted, 0, state.turn_len + 1)
        is_eos = torch.isin(chosen, self._eos)
        closes = in_user & (is_eos | (turn_len >= settings.user_tokens))
        ends = in_answer & (is_eos | (turn_len >= settings.answer_tokens))

        # A turn that closes goes on with the closing script; a script that is done hands over to the target.
        script = torch.where(closes, closing, state.script)
        index = torch.where(scripted, state.script_next, 0)
        token = torch.where(scripted | closes, scripts.token_ids[script, index], chosen)
        index = index + 1
        done = index >= scripts.lengths[script]
        after_script = torch.where(done, torch.where(script == closing, ANSWER, USER), SCRIPT)
        chooser = torch.where(scripted | closes, after_script, state.chooser)
        going_on = _State(
            token, state.position + 1, chooser, script, index, turn_len, state.temperature, state.conversation,
            in_answer, ends,
        )  # fmt: skip
        fresh = self._opening(state.conversation)
        return _State(*(torch.where(state.ends, new, old) for new, old in zip(fresh, going_on, strict=True)))

    def _opening(self, last: torch.Tensor) -> _State:
        """The first token of a new conversation in every sequence, behind the ones numbered `last` (B,)."""
        settings, device = self.settings, self.target.device
        count = settings.num_sequences
        script = torch.randint(len(self.scripts.lengths) - 1, (count,), device=device)
        zeros = torch.zeros_like(script)
        is_greedy = torch.rand(count, device=device) < settings.greedy_share
        temperature = torch.where(is_greedy, 0.0, settings.answer_temperature)
        chooser = torch.where(self.scripts.lengths[script] > 1, SCRIPT, USER)
        return _State(
            self.scripts.token_ids[script, 0], zeros, chooser, script, zeros + 1, zeros, temperature, last + count,
            zeros.bool(), zeros.bool(),
        )  # fmt: skip


@torch.inference_mode()
def synthesise(synthesis: Synthesis, keep_hidden: bool, report: Callable[[int, int], None]) -> Corpus:
    """Run `num_steps` steps; what was read is the corpus, one row for each sequence."""
    settings, device = synthesis.settings, synthesis.target.device
    shape = (settings.num_sequences, settings.num_steps)
    token_ids = torch.empty(shape, dtype=torch.int32, device=device)
    positions = torch.empty(shape, dtype=torch.int16, device=device)
    learnt = torch.empty(shape, dtype=torch.bool, device=device)
    hidden = None
    if keep_hidden:
        hidden = torch.empty((*shape, synthesis.hidden.shape[1]), dtype=synthesis.hidden.dtype, device=device)
    advance = _captured(synthesis) if device.type == "cuda" else synthesis.step
    for step in range(settings.num_steps):
        token_ids[:, step] = synthesis.state.token
        positions[:, step] = synthesis.state.position
        learnt[:, step] = synthesis.state.is_answer
        advance()
        if hidden is not None:
            hidden[:, step] = synthesis.hidden
        if step % 16 == 15:
            report(step + 1, settings.num_steps)
    return Corpus(token_ids, positions, learnt, hidden)


def _captured(synthesis: Synthesis) -> Callable[[], None]:
    """One step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            synthesis.step()
        synthesis.restart()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        synthesis.step()
    return graph.replay
