"""`python -m pipelines.ui`: MLflow's page on the store that builds write to."""

import argparse
import os
import subprocess
import sys

from pipelines.loading import load_config
from pipelines.redaction import redacted_text
from pipelines.tracking_store import MLFLOW_SETTINGS
from runtime.errors import EnginewrightError


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ui", description="Open MLflow on the tracking store.")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the page has no password")
    options = parser.parse_args()
    try:
        config = load_config([], os.environ)
    except EnginewrightError as error:
        sys.exit(f"error: {redacted_text(str(error))}")
    uri = config.tracking.uri
    if uri.startswith("sqlite:///") and not os.path.exists(uri.removeprefix("sqlite:///")):
        sys.exit(f"error: no runs are recorded at {uri} yet; run make engine first")
    print(f"MLflow at http://{options.host}:{options.port} on {redacted_text(uri)}; Ctrl-C ends it", file=sys.stderr)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", options.host,
               "--port", str(options.port)]  # fmt: skip
    try:
        sys.exit(subprocess.run(command, env=MLFLOW_SETTINGS | os.environ).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
