"""What the benchmarks of the operator differentiate, in one way for every backend."""

from collections.abc import Callable
from typing import Any

import jax


def gradient(function: Callable) -> Callable:
    """Make the function of a cotangent and the arguments that gives values and gradients."""

    def both(dy: Any, *arguments: Any) -> tuple:
        y, vjp = jax.vjp(function, *arguments)
        return y, vjp(dy)

    return both


def gradient_with_tangent(function: Callable, *, along: tuple[int, ...]) -> Callable:
    """Make `gradient` of a value whose cotangent needs the tangent too, as in MeanFlow's loss.

    The function takes the tangents of the arguments `along` after the cotangent.
    """

    def both(dy: Any, tangents: tuple[Any, ...], *arguments: Any) -> tuple:
        def value_and_tangent(*arguments: Any) -> tuple:
            def along_them(*varying: Any) -> Any:
                given = dict(zip(along, varying))
                return function(*(given.get(i, x) for i, x in enumerate(arguments)))

            return jax.jvp(along_them, tuple(arguments[i] for i in along), tangents)

        results: Any = jax.vjp(value_and_tangent, *arguments, has_aux=True)
        y, vjp, tangent = results
        return y, vjp(dy + tangent)

    return both
