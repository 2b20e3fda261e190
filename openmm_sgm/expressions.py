"""Algebraic expressions in OpenMM's notation, evaluated with numpy: a small grammar, checked before anything is run."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from .units import InputError

__all__ = ["Expression"]


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of points (3, n), shape (n,)."""
    return np.linalg.norm(b - a, axis=0)


def _angle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the angle at the second of three points (3, n), radians, shape (n,)."""
    u, v = a - b, c - b
    return np.arctan2(np.linalg.norm(np.cross(u, v, axis=0), axis=0), (u * v).sum(axis=0))


def _dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return the dihedral angle of four points (3, n), radians, shape (n,)."""
    u, v, w = b - a, c - b, d - c
    across, along = np.cross(u, v, axis=0), np.cross(v, w, axis=0)
    return np.arctan2(np.linalg.norm(v, axis=0) * (u * along).sum(axis=0), (across * along).sum(axis=0))


def _of_coordinates(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of x, y, z of each point instead of points (3, n)."""

    def of_coordinates(*numbers: Any) -> Any:
        points = np.array(np.broadcast_arrays(*numbers), dtype=np.float64)
        return function(*points.reshape(-1, 3, *points.shape[1:]))

    return of_coordinates


FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tan": (1, np.tan),
    "asin": (1, np.arcsin),
    "acos": (1, np.arccos),
    "atan": (1, np.arctan),
    "atan2": (2, np.arctan2),
    "sinh": (1, np.sinh),
    "cosh": (1, np.cosh),
    "tanh": (1, np.tanh),
    "abs": (1, np.abs),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "sec": (1, lambda x: 1 / np.cos(x)),
    "csc": (1, lambda x: 1 / np.sin(x)),
    "cot": (1, lambda x: 1 / np.tan(x)),
    "erf": (1, special.erf),
    "erfc": (1, special.erfc),
    "square": (1, lambda x: np.power(x, 2)),
    "cube": (1, lambda x: np.power(x, 3)),
    "recip": (1, lambda x: np.divide(1, x)),
    "pointdistance": (6, _of_coordinates(_distance)),
    "pointangle": (9, _of_coordinates(_angle)),
    "pointdihedral": (12, _of_coordinates(_dihedral)),
}
"""Of those that OpenMM knows, the continuous ones: number of arguments, and the function. step, delta, floor, ceil and
select are none: a CV that jumps exerts no force where it does."""
OF_PARTICLES = {name: FUNCTIONS[f"point{name}"] for name in ("distance", "angle", "dihedral")}
"""Functions of particles by name, p1 being the one with the coordinates x1, y1, z1."""
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
}
MOST_CHARACTERS = 2000


class Expression:
    """An expression such as "r-0.3; r=sqrt(x1^2+y1^2)": what is before the first semicolon, then definitions.

    As in OpenMM's custom forces, a definition may use those to the right of it, and distance(p1, p2), angle(p1, p2, p3)
    and dihedral(p1, p2, p3, p4) take particles. The parser is Python's, of whose syntax only numbers, names,
    + - * / ^, parentheses and calls of `FUNCTIONS` and `OF_PARTICLES` are let through; no code is run.

    >>> Expression("2*r; r=sqrt(x1^2+y1^2)", ("x1", "y1", "z1"))({"x1": x, "y1": y, "z1": z})

    Parameters
    ----------
    variables : names; where x1, y1 and z1 are among them there is a particle p1, and so on

    Attributes
    ----------
    text : as it was given, for OpenMM

    Raises
    ------
    InputError
        for anything else: one sentence that names it.
    """

    def __init__(self, text: str, variables: Iterable[str]) -> None:
        if not isinstance(text, str) or not text.strip() or len(text) > MOST_CHARACTERS:
            raise InputError(f"an expression is a text of 1 to {MOST_CHARACTERS} characters, got {text!r:.40}")
        self.text = text
        known = set(variables)
        parts = text.strip().rstrip(";").split(";")
        self._definitions: list[tuple[str, ast.expr]] = []
        for part in reversed(parts[1:]):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if not re.fullmatch(r"[A-Za-z]\w*", name) or keyword.iskeyword(name) or name in FUNCTIONS or name in known:
                raise InputError(f"'{part.strip()}' must define a new name, as in r=sqrt(x1^2+y1^2)")
            self._definitions.append((name, _parse(value, known)))
            known.add(name)
        self._value = _parse(parts[0], known)

    @property
    def defined(self) -> frozenset[str]:
        """Names that the expression defines."""
        return frozenset(name for name, _ in self._definitions)

    def __call__(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the value for arrays (n,) of every variable, shape (n,); NaN or infinity where it has none."""
        known: dict[str, Any] = dict(values)
        shape = np.broadcast_shapes(*(np.shape(array) for array in known.values()))
        with np.errstate(all="ignore"):
            for name, tree in self._definitions:
                known[name] = _evaluate(tree, known)
            return np.array(np.broadcast_to(_evaluate(self._value, known), shape), dtype=np.float64)


def _parse(text: str, known: set[str]) -> ast.expr:
    """Return the checked tree of one expression."""
    if "**" in text or re.search(r"(?<!\w)[\d.]+_|__", text):  # Python would take them, OpenMM would not
        raise InputError(f"'{text.strip():.80}' is not in OpenMM's notation: powers are written ^, numbers without _")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"'{text.strip():.80}' cannot be read as an expression") from None
    _check(tree, known)
    return tree


def _check(tree: ast.AST, known: set[str]) -> None:
    """Refuse whatever is not in the grammar."""
    match tree:
        case ast.Constant(value=int() | float()) if not isinstance(tree.value, bool):
            return
        case ast.Name(id=name):
            if name not in known:
                raise InputError(f"'{name}' is unknown in an expression of {', '.join(sorted(known))}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _check(left, known)
            _check(right, known)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, known)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            if name in OF_PARTICLES:
                _check_particles(name, arguments, known)
                return
            if name not in FUNCTIONS:
                raise InputError(f"'{name}' is not among the functions {', '.join((*FUNCTIONS, *OF_PARTICLES))}")
            if len(arguments) != FUNCTIONS[name][0]:
                raise InputError(f"{name} takes {FUNCTIONS[name][0]} argument(s), got {len(arguments)}")
            for argument in arguments:
                _check(argument, known)
        case _:
            raise InputError(f"'{ast.unparse(tree)}' is not allowed: numbers, names, + - * / ^ and functions are")


def _check_particles(name: str, arguments: Sequence[ast.expr], known: set[str]) -> None:
    """Refuse arguments of a function of particles that are none."""
    count = OF_PARTICLES[name][0] // 3
    numbers = sorted(int(name[1:]) for name in known if re.fullmatch(r"x[1-9]\d*", name))
    particles = [f"p{k}" for k in numbers if {f"y{k}", f"z{k}"} <= known and f"p{k}" not in known]
    given = [argument.id if isinstance(argument, ast.Name) else "" for argument in arguments]
    if len(given) != count or not set(given) <= set(particles):
        raise InputError(f"{name} takes {count} of the particles {', '.join(particles) or '(there are none)'}")


def _evaluate(tree: ast.AST, values: Mapping[str, Any]) -> Any:
    """Return the value of a checked tree."""
    match tree:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return values[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_evaluate(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments) if name in OF_PARTICLES:
            numbers = [argument.id[1:] for argument in arguments if isinstance(argument, ast.Name)]
            return OF_PARTICLES[name][1](*(values[f"{axis}{k}"] for k in numbers for axis in "xyz"))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return FUNCTIONS[name][1](*(_evaluate(argument, values) for argument in arguments))
    raise AssertionError(ast.dump(tree))
