"""Ask an advisory service whether a pinned dependency has a known vulnerability: `make check` runs this.

A vulnerability is exit code 1, with a table. Where no service answers, as in CI without the internet, a line says that
nothing was asked, and the exit code is 0: a check that fails for the weather is switched off.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
SECONDS_A_REQUEST = 10
SECONDS_IN_ALL = 240
UNREACHABLE = ("ConnectionError", "ServiceError", "Timeout", "ProxyError", "SSLError")
"""What pip-audit's message names where the service, and not what was asked, is the reason."""


def known_vulnerabilities(constraints: Path, osv_url: str) -> list[tuple[str, ...]] | str:
    """(name, version, advisory, versions that mend it) of each, or why nothing was asked.

    Raises ValueError where pip-audit refuses the file.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(constraints), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--timeout", str(SECONDS_A_REQUEST)]
    command += ["--progress-spinner", "off", "--format", "json", *(["--osv-url", osv_url] if osv_url else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_IN_ALL)
    except subprocess.TimeoutExpired:
        return f"the advisory service took more than {SECONDS_IN_ALL} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        told = done.stderr.strip() or "pip-audit said nothing"
        if any(reason in told for reason in UNREACHABLE):
            return "no advisory service answers"
        raise ValueError(told.splitlines()[-1]) from None
    return [
        (package["name"], package["version"], advisory["id"], ", ".join(advisory["fix_versions"]) or "none yet")
        for package in found["dependencies"]
        for advisory in package.get("vulns", ())
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, help="the file with name==version lines")
    parser.add_argument("--osv-url", default="", help="another service that speaks OSV's language, such as a mirror")
    given = parser.parse_args(argv)
    try:
        found = known_vulnerabilities(given.constraints, given.osv_url)
    except ValueError as error:
        print(f"error: {given.constraints}: not audited: {error}", file=sys.stderr)
        return 1
    if isinstance(found, str):
        print(f"{given.constraints.name}: not audited: {found}")
        return 0
    if not found:
        print(f"{given.constraints.name}: no known vulnerability")
        return 0
    rows = [("package", "version", "advisory", "mended in"), *found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
