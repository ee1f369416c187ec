"""What a test does when a server or a tool is missing: skip here, fail where it was promised.

`GLIMPSE_REQUIRE` (`all`, or names with commas between) lists what must be there, so that a run that promises
everything cannot pass by skipping.
"""

import os
from typing import NoReturn

import pytest

from servers.tools import Missing, tool


def require(name: str, reason: str) -> NoReturn:
    """End this test: `name` (a server or a tool) is missing because of `reason`."""
    required = {word.strip() for word in os.environ.get("GLIMPSE_REQUIRE", "").split(",")}
    if required & {"all", name}:
        pytest.fail(f"{name} is required by GLIMPSE_REQUIRE, but: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")


def require_tool(name: str, package: str) -> str:
    """The path of a program, or `require`."""
    try:
        return tool(name, package)
    except Missing as error:
        require(name, str(error))
