"""Calls in processes of their own: encryption and torch must not share one (see workloads/imaging.py)."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def call_apart(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of the call; arguments and result must be picklable."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *args, **kwargs).result()
