"""Label selectors, as everywhere in Kubernetes.

Apart from the kinds, since more than one of their parts selects by labels.
"""

from typing import Annotated, Literal

from pydantic import Field

from glimpse.api.base import Model, Rule

LABEL = Rule(
    "self.matches('^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')",
    "must be the name of a label, such as team or example.com/team",
)


LabelValue = Annotated[
    str,
    Field(max_length=63),
    Rule(
        "self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')", "must be the value of a label, such as team-a"
    ),
]


class LabelSelectorRequirement(Model):
    """One requirement of a label selector."""

    rules = (
        Rule(
            "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 :"
            " !has(self.values) || size(self.values) == 0",
            "In and NotIn need values; Exists and DoesNotExist take none",
        ),
    )

    key: Annotated[str, Field(min_length=1, max_length=317), LABEL]
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label relates to `values`."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] = ()
    """For In and NotIn."""


class LabelSelector(Model):
    """Selects by labels, as everywhere in Kubernetes. All requirements must hold."""

    match_labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=32),
        Rule(LABEL.rule.replace("self", "key").join(("self.all(key, ", ")")), LABEL.message),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """Labels with these values."""
    match_expressions: Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=32)] = ()
    """Requirements on labels."""
