"""Write `crds/` anew from the models and the installed drivers, or with `--check` only say what differs."""

import sys

from glimpse import stores
from glimpse.api import crd
from servers import ROOT


def main() -> int:
    """Write or check; 1 if the check found a difference."""
    drivers = {name: stores.load(name).Config for name in sorted(stores.installed())}
    files = crd.files(drivers)
    folder = ROOT / "crds"
    have = {path.name: path.read_text() for path in folder.glob("*.yaml")}
    changed = sorted(name for name in files.keys() | have.keys() if files.get(name) != have.get(name))
    if "--check" in sys.argv:
        for name in changed:
            print(f"crds/{name} is not what the models say: run `make crds` and commit it", file=sys.stderr)
        return 1 if changed else 0
    for name in changed:
        if name in files:
            (folder / name).write_text(files[name])
        else:
            (folder / name).unlink()
        print(f"crds/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
