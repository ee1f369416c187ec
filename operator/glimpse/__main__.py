"""The command `glimpse`: arguments only.

Each program imports nothing of the others, so that none can hold what it must not have.
"""

import argparse
import os
import re
import sys
from importlib.metadata import version
from itertools import takewhile

from pydantic import ValidationError
from pydantic_settings import SettingsError

from glimpse.given import wrong
from glimpse.settings import Settings, unknown


def main(arguments: list[str] | None = None) -> int:
    """Run one program; its exit status. 2: the arguments or the settings are wrong, as one line on stderr says."""
    parser = argparse.ArgumentParser("glimpse", description="Virtual-machine images as Kubernetes custom resources.")
    parser.add_argument("--version", action="version", version=f"glimpse {version('glimpse')}")
    programs = parser.add_subparsers(dest="program", required=True, metavar="PROGRAM")
    programs.add_parser("operator", help="watch Images and ImageStores, start workers, write status")
    worker = programs.add_parser("worker", help="do one task: JSON line on stdin, JSON lines on stdout")
    worker.add_argument("--warm", type=int, metavar="FD", help="serve tasks that come through this control socket")
    programs.add_parser("gateway", help="serve the images")
    programs.add_parser(
        "crds",
        help="print the CustomResourceDefinitions, with the stores that are installed, and the admission policies",
    )
    asked = parser.parse_args(arguments)
    if asked.program == "worker":
        from glimpse import worker as program

        return program.main(asked.warm)
    if asked.program == "crds":
        return _crds()
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        sys.stderr.write(f"glimpse: {_faults(error)}\n")
        return 2
    for name in unknown(os.environ):
        sys.stderr.write(f"glimpse: {name} is no setting; is it mistyped? It is ignored.\n")
    from glimpse import confine

    confine.seal()  # both hold tokens
    if asked.program == "operator":
        from glimpse.control import handlers

        return handlers.main(settings)
    from glimpse.gateway import app

    return app.main(settings)


def _crds() -> int:
    from glimpse import stores
    from glimpse.api import crd

    drivers = {name: stores.load(name).Config for name in sorted(stores.installed())}
    sys.stdout.write(crd.dump([*crd.build(drivers), *crd.policies()]))
    return 0


def _faults(error: ValidationError | SettingsError) -> str:
    """Which variables are wrong, and how. No setting is a secret."""
    if isinstance(error, ValidationError):
        return "; ".join(dict.fromkeys(f"GLIMPSE_{_name(fault['loc'])}: {wrong(fault)}" for fault in error.errors()))
    # It names a field of the first level only, so all variables of it are named.
    field = re.search('field "(\\w+)"', str(error))
    start = f"GLIMPSE_{field[1]}" if field else "GLIMPSE_"
    names = sorted(name.upper() for name in os.environ if name.upper().startswith(start.upper()))
    return f"{', '.join(names)}: lists and groups are written as JSON"


def _name(loc: tuple[int | str, ...]) -> str:
    """Of the variable; without an entry's number in its list, and the way in which that was read."""
    return "__".join(str(part) for part in takewhile(lambda part: isinstance(part, str), loc)).upper()


if __name__ == "__main__":
    sys.exit(main())
