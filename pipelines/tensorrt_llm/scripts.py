"""The scripts of a folder for TensorRT-LLM: plain sh, for hosts that have TensorRT-LLM and nothing of ours.

Bundles are not written to: a script puts what it makes into a folder that its user names.
"""

import shlex
from collections.abc import Sequence

from pipelines.tensorrt_llm.versions import PROGRAMS

BUILD_SCRIPT, SERVE_SCRIPT = "build.sh", "serve.sh"
SCRIPTS = {"build": BUILD_SCRIPT, "serve": SERVE_SCRIPT}
DIGESTS_FILE = "files.sha256"

HEAD = """set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
wanted={version}

refuse() {{
    echo "error: $*" >&2
    exit 1
}}

program=$(command -v {program}) ||
    refuse "{program} is not on PATH; install TensorRT-LLM $wanted (tensorrt-llm==$wanted of pip), or use its container"
python=$(sed -n '1s/^#![[:space:]]*//p' "$program" | head -n 1)
case $python in *python*) ;; *) python=python3 ;; esac
found=$($python -c 'from importlib.metadata import version; print(version("tensorrt_llm"))' 2>/dev/null) ||
    refuse "$program does not say its version: $python has no package tensorrt_llm"
case $found in
"$wanted" | "$wanted"+*) ;;
*)
    refuse "TensorRT-LLM $found is installed, and this folder is for $wanted; install that, or build the bundle with" \\
        "target.tensorrt_llm.version=$found"
    ;;
esac
(cd "$here" && sha256sum --check --quiet {digests}) || refuse "$here is damaged; copy the bundle again"
"""

BUILD_USAGE = """#!/bin/sh
# Builds the engine of this folder on a host with an NVIDIA GPU and TensorRT-LLM {version}.
#
#   sh build.sh NEW_FOLDER   makes engine/, build.log and model.cache there{made}
#   sh build.sh --check      looks at this host and at the files here, and builds nothing
#
# TIMING_CACHE=<file> starts from the model.cache of an earlier build on the same GPU.
"""
BUILD_BODY = """
case ${{1:-}} in
--check)
    echo "TensorRT-LLM $found and the files are what this folder needs"
    exit 0
    ;;
'' | -*) refuse "usage: sh build.sh NEW_FOLDER, or sh build.sh --check" ;;
esac
[ ! -e "$1" ] || refuse "$1 exists already; name a new folder"
mkdir -p "$1"
cd "$1"
{checkpoint}
[ -z "${{TIMING_CACHE:-}}" ] || cp "$TIMING_CACHE" {cache}

{{
    {command} || echo "$?" >failed
}} 2>&1 | tee build.log
{cleanup}
if [ -e failed ] || [ ! -s engine/config.json ]; then
    rm -rf engine failed
    refuse "trtllm-build did not make an engine; its log: $1/build.log"
fi
echo "the engine is in $1/engine"
"""

SERVE_USAGE = """#!/bin/sh
# Serves the model of this folder on a host with NVIDIA GPUs and TensorRT-LLM {version}.
#
#   sh serve.sh {arguments} [options of trtllm-serve]
#   sh serve.sh --check      looks at this host and at the files here, and serves nothing
"""
SERVE_CHECK = """
if [ "${1:-}" = --check ]; then
    echo "TensorRT-LLM $found and the files are what this folder needs"
    exit 0
fi
"""
SERVE_MAKE = """
case ${1:-} in '' | -*) refuse "usage: sh serve.sh FOLDER [options of trtllm-serve], or sh serve.sh --check" ;; esac
folder=$1
shift
if [ ! -e "$folder" ]; then
    rm -rf "$folder.partial"
    mkdir -p "$folder.partial"
    cp -R "$here"/model "$here"/serve.yaml "$folder.partial"
    [ ! -e "$here/draft_model" ] || cp -R "$here/draft_model" "$folder.partial"
    $python "$here/make_weights.py" "$folder.partial"
    mv "$folder.partial" "$folder"
fi
cd "$folder"
"""


def build_script(version: str, command: Sequence[str], cache: str, weights_here: bool) -> str:
    """The text of build.sh; `weights_here`: whether the rank files are in the folder."""
    made = "" if weights_here else ", and checkpoint/ from the bundle's weights"
    make = 'mkdir checkpoint\ncp "$here/checkpoint/config.json" checkpoint\n$python "$here/make_weights.py" .'
    link = 'ln -s "$here/checkpoint" checkpoint'
    body = BUILD_BODY.format(
        checkpoint=link if weights_here else make, cache=cache, command=_lines(command, 4),
        cleanup="rm checkpoint" if weights_here else "",
    )  # fmt: skip
    return BUILD_USAGE.format(version=version, made=made) + _head(version, PROGRAMS["build"]) + body


def serve_script(version: str, command: Sequence[str], weights_here: bool) -> str:
    """The text of serve.sh; `weights_here`: whether the model's weights are in the folder."""
    usage = SERVE_USAGE.format(version=version, arguments="" if weights_here else "FOLDER")
    if not weights_here:
        usage += "#\n# FOLDER gets the model, made from the bundle's weights, and is used again where it exists.\n"
    start = '\ncd "$here"\n' if weights_here else SERVE_MAKE
    return usage + _head(version, PROGRAMS["serve"]) + SERVE_CHECK + start + f'exec {_lines(command, 0)} "$@"\n'


def _head(version: str, program: str) -> str:
    return HEAD.format(version=shlex.quote(version), program=program, digests=DIGESTS_FILE)


def _lines(command: Sequence[str], indent: int) -> str:
    """A command with a flag on each line."""
    first, *rest = command
    flags = " ".join(map(shlex.quote, rest)).replace(" --", f" \\\n{' ' * (indent + 4)}--")
    return f"{first} {flags}" if not flags.startswith("--") else f"{first} \\\n{' ' * (indent + 4)}{flags}"
