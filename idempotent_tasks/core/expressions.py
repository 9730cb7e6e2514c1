"""What a JMESPath expression reads of the arguments, by its syntax tree (``jmespath.compile(...).parsed``)."""

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["ALL_ARGUMENTS", "constants_of", "names_read"]

#: Stands in `names_read` for all arguments, or for one that no name selects.
ALL_ARGUMENTS: Final = "@"
#: Nodes each of whose children is evaluated on the value of the one before.
_CHAINS: Final = ("subexpression", "pipe", "index_expression")
#: Nodes whose first child is evaluated on the value at hand, and the others on each of its elements.
_PROJECTIONS: Final = ("projection", "value_projection", "filter_projection")
_WHOLE: Final = ("current", "identity", "index", "slice")


def names_read(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that an expression reads of the arguments, and `ALL_ARGUMENTS` where it reads them otherwise.

    Names that are read of something else, such as an element of a projection, are none of them.

    Args:
        node: the root of the syntax tree.
    """
    kind, children = node["type"], _children(node)
    if kind == "field":
        return frozenset({str(node["value"])})
    if kind in _WHOLE:
        return frozenset({ALL_ARGUMENTS})
    if kind == "expref":
        return frozenset()
    if kind in _CHAINS:
        further = [child for child in children if not _is_all(child)] or children
        return names_read(further[0])
    if kind in _PROJECTIONS:
        return names_read(children[0])
    return frozenset().union(*map(names_read, children))


def constants_of(node: Mapping[str, Any]) -> list[Any]:
    """Return what an expression itself brings into its value, in order: its literals and the names of its members."""
    own = [node["value"]] if node["type"] in ("literal", "key_val_pair") else []
    return own + [constant for child in _children(node) for constant in constants_of(child)]


def _children(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # Those of a slice are numbers.
    return [child for child in node["children"] if isinstance(child, Mapping)]


def _is_all(node: Mapping[str, Any]) -> bool:
    """Return whether a node's value is that on which it is evaluated."""
    return node["type"] in ("current", "identity") or (
        node["type"] in ("subexpression", "pipe") and all(map(_is_all, _children(node)))
    )
