"""`python -m runtime COMMAND BUNDLE`: a plain program for hosts that only run bundles.

Commands import what they need: looking at a bundle loads no weights and no torch.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from runtime.benchmark.settings import ProfileSettings, SuiteSettings
from runtime.errors import EnginewrightError
from runtime.server.options import add_options, serve_command

_GREEN, _PLAIN = "\033[32m", "\033[0m"
DIFF = "Compare two bundles: settings, provenance, files, weights, quality, speed. Exits with 0 if equal, 1 if not."


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 1 and one line for whatever a user can mend, with 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Run an engine bundle.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_commands(commands)
    doctor = add_bundle_command(commands, "doctor", check_command, "say whether the bundle will run on this machine")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    run_command(parser.parse_args(arguments))


def run_command(options: argparse.Namespace) -> None:
    """Run the command that a parser chose."""
    try:
        if key := getattr(options, "require_signature", None):
            from runtime.trust.signatures import require_signature

            options.bundle = require_signature(options.bundle, key)
        options.command(options)
    except EnginewrightError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_commands(commands: Any, bundle: Path | None = None) -> None:
    """Add every command that takes a bundle to subparsers; with `bundle`, that is the one where none is named."""

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        return add_bundle_command(commands, name, function, text, bundle)

    generate = command("generate", _generate, "complete a prompt")
    generate.add_argument("--prompt", required=True)
    _add_sampling(generate)
    chat = command("chat", _chat, "talk to the model; an empty line or Ctrl-D ends it")
    chat.add_argument("--system", help="the system message")
    chat.add_argument("--show-drafts", action="store_true", help="print accepted draft tokens in colour")
    _add_sampling(chat)
    command("verify", _verify, "check the engine against the reference in the bundle, on this machine")
    command("tune", _tune, "measure which kernels are fastest on this GPU, and keep it in the bundle")
    bench = command("bench", _bench, "measure the engine on this machine")
    bench.add_argument("--batch-sizes", type=int, nargs="+", default=SuiteSettings.batch_sizes, metavar="B")
    bench.add_argument("--prompt-lens", type=int, nargs="+", default=SuiteSettings.prompt_lens, metavar="S")
    bench.add_argument("--new-tokens", type=int, default=SuiteSettings.new_tokens)
    bench.add_argument("--repeats", type=int, default=SuiteSettings.repeats)
    bench.add_argument("--output", type=Path, help="write every timed run to this JSONL file")
    profile = command("profile", _profile, "say where the engine's time and memory go on this machine, op by op")
    profile.add_argument("--batch-size", type=int, default=ProfileSettings.batch_size)
    profile.add_argument("--prompt-len", type=int, default=ProfileSettings.prompt_len)
    profile.add_argument("--new-tokens", type=int, default=ProfileSettings.new_tokens)
    profile.add_argument("--json", action="store_true", help="print it all as JSON")
    inspect = command("inspect", _inspect, "say what the bundle is, after checking every file")
    inspect.add_argument("--json", action="store_true", help="print it all as JSON, the whole manifest included")
    serve = command("serve", _serve, "answer OpenAI's API over HTTP, with a chat page at /")
    add_options(serve)
    _add_speculation(serve)
    verify_signature = commands.add_parser("verify-signature", help="say whether the owner of a key signed a bundle")
    _add_bundle(verify_signature, bundle)
    verify_signature.add_argument("--public-key", type=Path, required=True, dest="require_signature", metavar="FILE")
    verify_signature.set_defaults(command=lambda options: print(f"{options.bundle}: signed by this key, unchanged"))
    diff = commands.add_parser("diff", help="compare two bundles", description=DIFF)
    diff.add_argument("a", type=Path)
    diff.add_argument("b", type=Path)
    diff.add_argument("--json", action="store_true", help="print it all as JSON")
    diff.set_defaults(command=_diff)
    archive = commands.add_parser("archive", help="write a bundle as one .tar.zst file")
    archive.add_argument("bundle", type=Path, help="the bundle's folder")
    archive.add_argument("--out", type=Path, help="the file; by default <bundle>.tar.zst beside it")
    archive.set_defaults(command=_archive)
    extract = commands.add_parser("extract", help="extract such a file to a folder")
    extract.add_argument("archive", type=Path, help="the .tar.zst file")
    extract.add_argument("--out", type=Path, help="the new folder; by default the archive's name beside it")
    extract.set_defaults(command=_extract)


def add_bundle_command(
    commands: Any, name: str, function: Any, text: str, bundle: Path | None = None
) -> argparse.ArgumentParser:
    """Add one command on a bundle."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    _add_bundle(parser, bundle)
    parser.add_argument("--target", help="which of its engines (default: cuda where it runs, else cpu)")
    key = os.environ.get("ENGINEWRIGHT_REQUIRE_SIGNATURE")
    text = "run only what the owner of this key signed (default: ENGINEWRIGHT_REQUIRE_SIGNATURE)"
    parser.add_argument("--require-signature", type=Path, metavar="PUBLIC_KEY", default=key and Path(key), help=text)
    parser.set_defaults(command=function)
    return parser


def _add_bundle(parser: argparse.ArgumentParser, bundle: Path | None) -> None:
    if bundle is None:
        parser.add_argument("bundle", type=Path, help="the bundle's folder, or its .tar.zst")
    else:
        parser.add_argument("bundle", type=Path, nargs="?", default=bundle, help="its folder (default: the latest)")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stop", action="append", default=[], help="end the text before this string; may be repeated")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the model's end tokens")
    _add_speculation(parser)


def _add_speculation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speculation", default="auto", metavar="MODE", help="off, auto (default), or a tree N,W,K such as 12,4,4"
    )
    parser.add_argument("--drafter", default="bundle", choices=("bundle", "ngram"), help="who drafts (default: bundle)")


def _params(options: argparse.Namespace) -> Any:
    from runtime.sampling import SamplingParams

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "ignore_eos")
    return SamplingParams(stop=tuple(options.stop), **{name: getattr(options, name) for name in names})


def _speculation(options: argparse.Namespace) -> Any:
    from runtime.speculation.loading import SpeculationOptions, default_costs_dir

    return SpeculationOptions(options.speculation, options.drafter, default_costs_dir())


def _load(options: argparse.Namespace) -> Any:
    from runtime.llm import LLM

    return LLM(options.bundle, chosen_target(options), _speculation(options))


def chosen_target(options: argparse.Namespace) -> str:
    """The engine that a command runs; where a bundle has several, one line on stderr says which, and why."""
    from runtime import machine
    from runtime.formats.bundle import built_targets
    from runtime.targets import choose_target

    built = built_targets(options.bundle)
    target, reason = choose_target(built, options.target, machine.look())
    if options.target is None and len(built) > 1:
        print(f"engine: {target} ({reason})", file=sys.stderr)
    return target


def _generate(options: argparse.Namespace) -> None:
    params = _params(options)
    llm = _load(options)
    _print_stream(llm, options.prompt, params, options.prompt)


def _chat(options: argparse.Namespace) -> None:
    from runtime.text.chat import Message

    params = _params(options)
    llm = _load(options)
    messages: list[Message] = [{"role": "system", "content": options.system}] if options.system else []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            line = ""
        if not line:
            return
        messages.append({"role": "user", "content": line})
        prompt = llm.text_engine.tokenizer.encode_chat(messages)
        answer = _print_stream(llm, prompt, params, colour=options.show_drafts)
        messages.append({"role": "assistant", "content": answer})


def _serve(options: argparse.Namespace) -> None:
    options.target = chosen_target(options)
    serve_command(options, _speculation(options))


def _print_stream(llm: Any, prompt: str | list[int], params: Any, echo: str = "", colour: bool = False) -> str:
    """Print text as it comes, after an echo of the prompt, then its speed on stderr; return the text."""
    started, pieces, marks = time.perf_counter(), [], []
    for delta in llm.stream(prompt, params):
        marks.append(time.perf_counter())
        pieces.append(delta.text)
        shown = f"{_GREEN}{delta.text}{_PLAIN}" if colour and delta.was_drafted and delta.text else delta.text
        print(shown if len(pieces) > 1 else echo + shown, end="", flush=True)
    print()
    speed = f", {(len(marks) - 1) / (marks[-1] - marks[0]):.1f} tokens/s" if len(marks) > 1 else ""
    speculation = delta.completion.speculation
    if speculation.num_drafts:
        speed += f", accepted length {speculation.accepted_length:.2f}"
    print(f"[{len(marks)} tokens, first after {(marks[0] - started) * 1e3:.0f} ms{speed}]", file=sys.stderr)
    return "".join(pieces)


def _verify(options: argparse.Namespace) -> None:
    from runtime.commands import verify_bundle

    report = verify_bundle(options.bundle, chosen_target(options), _report)
    print(json.dumps(report, indent=2))
    if not report["passed"]:
        raise EnginewrightError(f"{options.bundle}: {'; '.join(report['failures'])}")


def _tune(options: argparse.Namespace) -> None:
    from runtime.commands import tune_bundle

    if (target := chosen_target(options)) != "cuda":
        raise EnginewrightError(f"the {target} engine has no kernels to choose from; run tune where cuda runs")
    print(tune_bundle(options.bundle, _report))


def _bench(options: argparse.Namespace) -> None:
    from runtime.commands import bench_bundle

    settings = SuiteSettings(
        tuple(options.batch_sizes), tuple(options.prompt_lens), options.new_tokens, options.repeats
    )  # fmt: skip
    print(bench_bundle(options.bundle, chosen_target(options), settings, options.output, _report))


def _profile(options: argparse.Namespace) -> None:
    from runtime.commands import profile_bundle

    settings = ProfileSettings(options.batch_size, options.prompt_len, options.new_tokens)
    print(profile_bundle(options.bundle, chosen_target(options), settings, options.json))


def _inspect(options: argparse.Namespace) -> None:
    from runtime.formats.bundle import open_bundle
    from runtime.inspection import as_json, describe

    bundle = open_bundle(options.bundle)
    print(as_json(bundle) if options.json else describe(bundle))


def check_command(options: argparse.Namespace) -> None:
    """Say whether a bundle runs here; ends the process with 0 or 1."""
    from runtime import machine
    from runtime.readiness import as_json, as_text, check_bundle

    readiness = check_bundle(options.bundle, chosen_target(options), machine.look())
    print(as_json(readiness) if options.json else as_text(readiness))
    sys.exit(0 if readiness.runs else 1)


def _diff(options: argparse.Namespace) -> None:
    from runtime.comparison import as_json, compare_bundles
    from runtime.comparison_text import as_text

    found = compare_bundles(options.a, options.b)
    print(as_json(found) if options.json else as_text(found))
    sys.exit(0 if found.equal else 1)


def _archive(options: argparse.Namespace) -> None:
    from runtime.formats.archive import SUFFIX, archive_bundle

    folder = options.bundle.resolve()
    print(archive_bundle(folder, options.out or folder.with_name(folder.name + SUFFIX)))


def _extract(options: argparse.Namespace) -> None:
    from runtime.formats.archive import extract_bundle

    print(extract_bundle(options.archive, options.out))


def _report(fraction: float, text: str) -> None:
    print(f"{fraction:4.0%} {text}", file=sys.stderr)
