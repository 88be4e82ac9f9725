"""`python -m runtime` as a user meets it: what each command prints, one line for a mistake, and how little it needs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.cli import main
from runtime.formats.manifest import write_manifest
from runtime.llm import LLM
from runtime.sampling import SamplingParams
from runtime.speculation.loading import SpeculationOptions
from tests.runtime.tiny import PLAN, make_checkpoint, make_tokenizer

REPOSITORY = Path(__file__).parents[2]
# Hosts that only run bundles do not have these.
BUILD_LIBRARIES = ("transformers", "hydra", "mlflow", "omegaconf", "gguf", "fastapi", "matplotlib", "pipelines")
BLOCK = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BUILD_LIBRARIES}:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
"""
HEAVY = {"torch", "numpy", "transformers", "mlflow", "hydra", "matplotlib", "safetensors"}
LOADED = f"sorted({HEAVY} & set(sys.modules))"  # in the process that evaluates it
PROMPT = "hello wörld"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with all that a build's manifest says, but no attestations."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    checkpoint = make_checkpoint(folder)
    make_tokenizer(folder / "tokenizer")
    (folder / "engines" / "cpu").mkdir(parents=True)
    PLAN.write(folder / "engines" / "cpu")
    spec = json.loads((checkpoint.path / "config.json").read_text())
    target = {"arch": "any", "dtype": PLAN.dtype, "limits": {"max_seq_len": PLAN.max_seq_len}}
    source = {"uri": "random", "revision": "sha256:0"}
    write_manifest(folder, {"name": "tiny", "spec": spec}, {"cpu": target}, {"source": source})
    return folder


@pytest.fixture(scope="module")
def llm(bundle):
    return LLM(bundle)


def run_python(*arguments, stdin=""):
    """Run Python on arguments in a process of its own; give its exit code, stdout and stderr, as bytes came."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], input=stdin.encode(), capture_output=True, env=environment, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def command(name, bundle, *arguments, stdin=""):
    return run_python("-m", "runtime", name, bundle, *arguments, stdin=stdin)


def refused(name, bundle, *arguments):
    """Run a command in vain; give its one line."""
    code, _, stderr = command(name, bundle, *arguments)
    assert code == 1, stderr
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    return stderr


def test_generate_prints_the_prompt_and_its_continuation_and_tells_the_speed_apart(bundle, llm):
    code, stdout, stderr = command("generate", bundle, "--prompt", PROMPT, "--max-tokens", 12, "--ignore-eos")
    assert code == 0
    text = llm.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))[0].text
    assert stdout == PROMPT + text + "\n"
    assert stderr.startswith("[12 tokens, first after ")
    assert len(stderr.splitlines()) == 1


def test_sampling_options_reach_the_engine(bundle, llm, capsys):
    options = {"max_tokens": 9, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]
    free = llm.generate(PROMPT, SamplingParams(**options, ignore_eos=True))[0].text
    main(["generate", str(bundle), "--prompt", PROMPT, *flags, "--ignore-eos"])
    assert capsys.readouterr().out == PROMPT + free + "\n"
    main(["generate", str(bundle), "--prompt", PROMPT, *flags, "--ignore-eos", "--stop", free[3:5]])
    assert capsys.readouterr().out == PROMPT + free[: free.index(free[3:5])] + "\n"


DRAFTS = ("--drafter", "ngram", "--speculation", "8,1,7")
LOOPING = "ab" * 12  # prompt lookup finds something to propose, and is right now and then
REPEATED = "1"  # what the tiny model answers to this repeats itself, in tokens that are letters alone


@pytest.fixture(scope="module")
def drafting_llm(bundle):
    return LLM(bundle, speculation=SpeculationOptions(DRAFTS[3], DRAFTS[1]))


def test_generate_prints_the_accepted_length(bundle, drafting_llm, capsys):
    output = drafting_llm.generate(LOOPING, SamplingParams(max_tokens=64, ignore_eos=True))[0]
    length = output.completions[0].speculation.accepted_length
    assert length > 1.05
    main(["generate", str(bundle), "--prompt", LOOPING, "--max-tokens", "64", "--ignore-eos", *DRAFTS])
    printed = capsys.readouterr()
    assert printed.out == LOOPING + output.text + "\n", "drafts change nothing"
    assert printed.err.endswith(f", accepted length {length:.2f}]\n")
    main(["generate", str(bundle), "--prompt", LOOPING, "--max-tokens", "4", "--ignore-eos", "--speculation", "off"])
    assert "accepted length" not in capsys.readouterr().err


def test_chat_shows_accepted_draft_tokens_in_green_where_asked(bundle, drafting_llm, monkeypatch, capsys):
    messages = [{"role": "user", "content": REPEATED}]
    params = SamplingParams(max_tokens=60, ignore_eos=True)
    prompt = drafting_llm.text_engine.tokenizer.encode_chat(messages)
    deltas = list(drafting_llm.stream(prompt, params))
    drafted = [delta.text for delta in deltas if delta.was_drafted and delta.text]
    assert drafted

    def chat(*options):
        lines = iter([REPEATED, ""])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        main(["chat", str(bundle), "--max-tokens", "60", "--ignore-eos", *DRAFTS, *options])
        return capsys.readouterr().out

    plain, coloured = chat(), chat("--show-drafts")
    assert plain == "".join(delta.text for delta in deltas) + "\n"
    assert re.findall("\x1b\\[32m(.*?)\x1b\\[0m", coloured, re.DOTALL) == drafted
    assert re.sub("\x1b\\[[0-9]+m", "", coloured) == plain


@pytest.mark.parametrize("end", ["", "\n"], ids=["end of input", "empty line"])
def test_chat_answers_each_line_with_what_was_said_before(bundle, llm, end):
    arguments = ("--system", "be brief", "--max-tokens", 6)
    code, stdout, _ = command("chat", bundle, *arguments, stdin="hi\nand?\n" + end)
    assert code == 0
    params = SamplingParams(max_tokens=6)
    messages = [{"role": "system", "content": "be brief"}]
    expected = ""
    for line in ("hi", "and?"):
        messages.append({"role": "user", "content": line})
        answer = llm.chat(messages, params).text
        messages.append({"role": "assistant", "content": answer})
        expected += f"> {answer}\n"
    assert stdout == expected + "> "


def test_bench_measures_what_the_engine_holds_and_keeps_every_run(bundle, tmp_path, capsys):
    sizes = ["--batch-sizes", "1", "2", "--prompt-lens", "16", "512", "--new-tokens", "4", "--repeats", "2"]
    main(["bench", str(bundle), *sizes, "--output", str(tmp_path / "runs.jsonl")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["case", "batch", "prompt", "median", "min", "max", "unit"]
    # Prefill and decode in two units at either batch size; 512 tokens are more than the engine holds.
    cases = [tuple(row.split()[:3]) for row in rows]
    uniform = {(case, batch, "16") for case in ("prefill", "decode") for batch in ("1", "2")}
    assert set(cases) == uniform | {("mixed", "16", "mixed")}
    assert len(cases) == 2 * len(uniform) + 1
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(run["batch_size"], run["prompt_len"], run["repeat"]) for run in runs] == [
        (batch, prompt, repeat) for batch, prompt in ((1, 16), (2, 16), (16, 0)) for repeat in (0, 1)
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--new-tokens", "1"], "new_tokens is 1; it must be at least 2"),
        (["--batch-sizes", "0"], r"batch_sizes is \(0,\); it must be at least 1"),
        (["--prompt-lens", "512"], "this engine holds 96 tokens together: measure prompts of at most 64"),
        (["--output", "/nowhere/runs.jsonl"], "/nowhere/runs.jsonl: cannot be written"),
    ],
)
def test_bench_refuses_what_it_cannot_measure_or_keep_before_the_work(bundle, arguments, words):
    with pytest.raises(SystemExit, match=f"^error: .*{words}"):
        main(["bench", str(bundle), *arguments])


def test_inspect_says_what_the_bundle_is_without_torch(bundle):
    code = f"import sys, runtime.cli; runtime.cli.main(['inspect', {str(bundle)!r}]); print({LOADED}, file=sys.stderr)"
    returned, stdout, stderr = run_python("-c", code)
    assert (returned, stderr) == (0, "[]\n")
    assert "model     tiny: LlamaForCausalLM, 2 layers, hidden 32, vocabulary 260, weights in float32" in stdout
    assert "source    random (sha256:0)" in stdout
    assert "target    cpu: float64, arch any, max_seq_len 96" in stdout
    assert "verified  no report in this bundle" in stdout
    assert "bench     no measurement in this bundle" in stdout
    assert f"{(bundle / 'weights.safetensors').stat().st_size:,} bytes" in stdout
    _, text, _ = command("inspect", bundle, "--json")
    found = json.loads(text)
    assert found["manifest"] == json.loads((bundle / "manifest.json").read_text())
    assert found["verified"] is None
    assert found["measured"] is None


@pytest.mark.parametrize("name", ["generate", "inspect", "verify", "bench", "chat"])
def test_no_command_runs_a_damaged_bundle(bundle, tmp_path, name):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    weights = bytearray((damaged / "weights.safetensors").read_bytes())
    weights[-5] ^= 1
    (damaged / "weights.safetensors").write_bytes(weights)
    arguments = ["--prompt", PROMPT] if name == "generate" else []
    assert "weights.safetensors: sha256 " in refused(name, damaged, *arguments)


def test_a_file_that_nothing_vouches_for_is_refused_but_attestations_are_free(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "attestations").mkdir()
    (copy / "attestations" / "note.txt").write_text("measured on another machine")
    assert command("inspect", copy)[0] == 0
    (copy / "tokenizer" / "extra.jinja").write_text("{{ 1 }}")
    assert "tokenizer/extra.jinja: not in the manifest" in refused("inspect", copy)


@pytest.mark.parametrize(
    "manifest", ['{"schema": 1}', '{"schema": 1, "files": []}', '{"schema": 1, "files": {"a": 1}}']
)
def test_a_manifest_without_its_list_of_files_is_refused(bundle, tmp_path, manifest):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "manifest.json").write_text(manifest)
    with pytest.raises(SystemExit, match=r"^error: .*manifest\.json: not a bundle manifest"):
        main(["inspect", str(copy)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "x" * 200], "the prompt has 200 tokens; this engine holds 96"),
        (["--prompt", "x" * 90], "with max_tokens=256 exceeds this engine's 96 tokens; ask for at most 6"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", PROMPT, "--target", "cuda"], "no engine for target 'cuda', only for cpu"),
        (["--prompt", PROMPT, "--max-tokens", 0], "max_tokens is 0"),
        (["--prompt", PROMPT, "--temperature", "nan"], "temperature is nan"),
    ],
)
def test_what_cannot_be_generated_is_one_line_and_prints_nothing(bundle, arguments, words):
    code, stdout, stderr = command("generate", bundle, *arguments)
    assert (code, stdout) == (1, "")
    assert stderr.startswith("error: ")
    assert words in stderr
    assert len(stderr.splitlines()) == 1


def test_a_folder_that_is_no_bundle_and_one_without_a_reference_say_so(bundle, tmp_path):
    assert f"{tmp_path}: no engine bundle here" in refused("inspect", tmp_path)
    assert "reference.safetensors: unreadable" in refused("verify", bundle)


def test_bundles_run_where_the_builders_libraries_are_not_installed(bundle, llm):
    code = (
        f"{BLOCK}\nimport importlib, pkgutil, runtime, plugins\n"
        "for package in (runtime, plugins):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__') and not module.name.startswith('runtime.server.'):\n"
        "            importlib.import_module(module.name)\n"
        f"llm = runtime.LLM({str(bundle)!r})\n"
        f"print(ascii(llm.generate({PROMPT!r}, runtime.SamplingParams(max_tokens=8))[0].text))\n"
    )
    returned, stdout, stderr = run_python("-c", code)
    assert returned == 0, stderr
    assert stdout.strip() == ascii(llm.generate(PROMPT, SamplingParams(max_tokens=8))[0].text)


def test_importing_the_runtime_and_its_command_line_brings_in_no_torch():
    code = f"import sys, runtime, plugins, runtime.cli; print({LOADED})"
    assert run_python("-c", code) == (0, "[]\n", "")


def test_a_reader_that_goes_away_is_no_error(bundle):
    pipe = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-m', 'runtime', 'inspect', sys.argv[1]], "
    pipe += "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); print(p.stderr.read(), p.wait())"
    assert run_python("-c", pipe, bundle) == (0, "b'' 0\n", "")
