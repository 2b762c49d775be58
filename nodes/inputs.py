"""What every node checks of its inputs before it runs: the host lets null and NaN through, and checks no links."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from comfy_api.latest import io

from ..dreamvideo.safety.texts import printable, quoted


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which now checks its inputs by its own schema before it executes, and whose errors can be shown."""
    execute = node.execute.__func__
    parameters = list(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def run(cls, *given: Any, **named: Any) -> io.NodeOutput:
        check_inputs(cls.define_schema().inputs, {**dict(zip(parameters, given, strict=False)), **named})
        try:
            return execute(cls, *given, **named)
        except ValueError as error:  # may repeat what a file says, and goes to the host's log and terminal
            told = printable(str(error))
            if told == str(error):
                raise
            raise ValueError(told) from None

    node.execute = classmethod(run)
    return node


def check_inputs(inputs: Iterable[Any], given: Mapping[str, Any]) -> None:
    """Raise ValueError for a required input that holds nothing, and for a number that is none or out of its limits."""
    for each in inputs:
        if each.id not in given:
            continue
        value = given[each.id]
        values = value if isinstance(value, list) else [value]
        if not each.optional and (not values or any(one is None for one in values)):
            raise ValueError(f"The input {each.id} holds nothing: connect it, or choose a value.")
        low, high = getattr(each, "min", None), getattr(each, "max", None)
        if low is not None and high is not None:
            for number in values:
                _check_number(each.id, number, low, high)


def _check_number(name: str, number: Any, low: float, high: float) -> None:
    if number is None:  # an optional one, which the node has a value for
        return
    if not isinstance(number, Real) or math.isnan(number):
        raise ValueError(f"The input {name} is {quoted(number)}, which is no number: give one from {low} to {high}.")
    if not low <= number <= high:
        raise ValueError(f"The input {name} is {quoted(number)}: give a number from {low} to {high}.")
