"""A profile as people read it."""

from collections.abc import Iterator

from runtime.benchmark.profile import OpRow, PassProfile, Profile
from runtime.benchmark.settings import ProfileSettings

_MIB = 2**20
_WHOLE = {
    "decoder_step": "every layer, the final norm and the LM head are one launch",
    "layer_step": "the linear layers, each with what comes before and after it; their weights alone are counted",
}


def as_text(profile: Profile, settings: ProfileSettings) -> str:
    """Tables of the prefill, of a decode pass and of memory."""
    batch = f"{settings.batch_size} request{'s' if settings.batch_size > 1 else ''} of {settings.prompt_len} tokens"
    head = (
        f"{batch}; this device reads {profile.read_bytes_per_s / 1e9:,.0f} GB/s and multiplies "
        f"{profile.flop_per_s / 1e12:,.2f} TFLOP/s at most"
    )
    return "\n".join([head, *_pass_lines(profile.prefill), *_pass_lines(profile.decode), *_memory_lines(profile)])


def _pass_lines(one: PassProfile) -> Iterator[str]:
    total = sum(row.us for row in one.ops)
    yield ""
    yield f"{one.kind}: {one.wall_us:,.0f} us a pass, {total:,.0f} us in ops ({one.passes} passes)"
    yield f"  {'op':24} {'calls':>7} {'us':>10} {'share':>6} {'MB':>9} {'roofline':>8}"
    for row in one.ops:
        yield _op_line(row, total)
    yield from (f"  {op}: {text}" for op, text in _WHOLE.items() if any(row.op == op for row in one.ops))


def _op_line(row: OpRow, total: float) -> str:
    megabytes = "" if row.num_bytes is None else f"{row.num_bytes / 1e6:,.2f}"
    roofline = "" if row.roofline is None else f"{row.roofline:.0%}"
    return f"  {row.op:24} {row.calls:7.1f} {row.us:10,.1f} {row.us / total:6.1%} {megabytes:>9} {roofline:>8}"


def _memory_lines(profile: Profile) -> Iterator[str]:
    yield ""
    yield "memory"
    for name, num_bytes in vars(profile.memory).items():
        yield f"  {name:24} {'-' if num_bytes is None else f'{num_bytes / _MIB:,.1f} MiB':>14}"
