"""Puts wavesurfer.js, which draws the web page's waveform, into the package. Runs when the package is built or installed.

npm fetches the version in package-lock.json. Without npm or a network the build continues: the page then plays recordings without
a waveform, and says so. `make page` tries again, and fails if that fails.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
VENDOR = ROOT / "src" / "evoxtral_train" / "serving" / "page" / "vendor"
NPM = "npm ci --loglevel=error --ignore-scripts --no-audit --no-fund --prefer-offline --fetch-retries=0 --fetch-timeout=10000"
FILES = ["dist/wavesurfer.esm.js", "dist/plugins/regions.esm.js", "dist/plugins/timeline.esm.js", "LICENSE"]
LOCK = "package-lock.json"


class PageHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        missing = fetch_wavesurfer()
        if missing:
            self.app.display_warning(f"The web page will have no waveform: {missing}. Later: make page")


def fetch_wavesurfer() -> str | None:
    """Fill the vendor folder, unless it has the locked version. Returns why that was not possible."""
    lock = (ROOT / LOCK).read_bytes()
    if (VENDOR / LOCK).is_file() and (VENDOR / LOCK).read_bytes() == lock:
        return None
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not installed"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", LOCK):
            shutil.copy(ROOT / name, folder)
        try:
            subprocess.run([npm, *NPM.split()[1:]], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
        except subprocess.CalledProcessError as failure:
            return f"npm failed: {' '.join(failure.stderr.split())[:300]}"
        except subprocess.TimeoutExpired:
            return "npm took more than 60 s"
        VENDOR.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copy(Path(folder) / "node_modules" / "wavesurfer.js" / name, VENDOR)
    (VENDOR / LOCK).write_bytes(lock)  # last: the folder is complete
    return None


if __name__ == "__main__":
    sys.exit(fetch_wavesurfer())
