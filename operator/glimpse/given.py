"""What is wrong with a value that a person has given, in our words: what it must be, and what it is.

The library that reads them speaks of its own types, and says the same fault of an address once for each version of IP.
"""

from collections.abc import Mapping
from typing import Final

from pydantic_core import ErrorDetails

from glimpse.problems import SecretNotReadable

_NETWORK: Final = "must be a network such as 10.20.0.0/16, without bits of a host"
_MUST: Final = {
    "missing": "must be given",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "list_type": "must be a list",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "literal_error": "must be {expected}",
    "ip_v4_network": _NETWORK,
    "ip_v6_network": _NETWORK,
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "extra_forbidden": "is not known here; is it mistyped?",
    "value_error": "{error}",
}
"""By the type of the fault; others are told in the library's words."""
_SHOWN: Final = 60
"""Characters of a value that are shown."""


def wrong(fault: ErrorDetails) -> str:
    """What a value must be, and what it is if that is short. Not for what may be secret."""
    text = _MUST.get(fault["type"], fault["msg"].replace("{", "{{").replace("}", "}}")).format_map(fault.get("ctx", {}))
    given = fault["input"]
    if fault["type"] == "extra_forbidden" or not isinstance(given, str | int | float):
        return text
    shown = repr(given)
    told = isinstance(given, str) and shown in text
    return text if told or len(shown) > _SHOWN else f"{text}; it is {shown}"


def for_header(secret: Mapping[str, str], *keys: str) -> None:
    """Raises SecretNotReadable if the value of one of these cannot stand in a header of HTTP."""
    for key in keys:
        value = secret.get(key, "")
        if not (value.isascii() and value.isprintable()):
            raise SecretNotReadable(
                f"key {key!r} of the store's Secret holds a line break, a control character or a letter beyond ASCII"
            )
