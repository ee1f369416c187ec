"""Which variants of a contract's tests are run where a server is slow: what is required is always among them."""

import os
import re
import subprocess
import sys
from collections import defaultdict

from tests.stores.conftest import VARIANTS

from glimpse.streams import CHUNK
from servers import ROOT

GIVES, CUTS = "test_gives_back_what_it_was_given", "test_cuts_where_a_part_ends"
NODE = re.compile(r"tests/stores/test_(\w+)\.py::(\w+)::(\w+)\[(.+)\]")


def test_no_driver_goes_without_the_required_ones() -> None:
    """Each class that has the test has it for nothing at all, for just one part, and for a byte more."""
    modules = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests" / "stores").glob("test_*.py")
        if path.stem.split("_")[1] in VARIANTS
    )
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *modules],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for match in map(NODE.fullmatch, done.stdout.splitlines()):
        if match and match[3] in {GIVES, CUTS}:
            found[match[1], match[2], match[3]].add(re.sub("-(no-)?length$", "", match[4]))
    assert {module.split("_")[0] for module, _, _ in found} == {name.partition(" ")[0] for name in VARIANTS}
    for (module, kind, test), variants in found.items():
        wanted = {"0", str(CHUNK), str(CHUNK + 1)} if test == GIVES else {"1-0", "1-1"}
        assert wanted <= variants, (module, kind, test)
