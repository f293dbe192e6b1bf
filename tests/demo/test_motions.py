"""The order of frames: a permutation of one path, so that single frames tell nothing; played backwards it is another class."""

from __future__ import annotations

from typing import get_args

import pytest

from stjepa_cli.demo.motions import REVERSED, SCENES, Order, moments

ORDERS: tuple[Order, ...] = get_args(Order)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("order", ORDERS)
def test_every_moment_of_the_path_is_shown_once(order: Order, num_frames: int) -> None:
    assert sorted(moments(order, num_frames).tolist()) == list(range(num_frames))


def test_orders_of_six_moments_are_those_of_the_docstring() -> None:
    assert {order: moments(order, 6).tolist() for order in ORDERS} == {
        "rise": [0, 1, 2, 3, 4, 5],
        "fall": [5, 4, 3, 2, 1, 0],
        "out_back": [0, 2, 4, 5, 3, 1],
        "back_out": [5, 3, 1, 0, 2, 4],
    }


@pytest.mark.parametrize("order", ORDERS)
def test_played_backwards_it_is_the_reversed_order_within_one_moment(order: Order) -> None:
    distance = moments(order, 16).flip(0) - moments(REVERSED[order], 16)
    assert distance.abs().max() <= (0 if order in ("rise", "fall") else 1)


@pytest.mark.parametrize("name", SCENES)
def test_each_axis_has_opposite_motions_and_no_class_twice(name: str) -> None:
    motions = SCENES[name].motions
    assert len(motions) == int(name)
    kinds = {(motion.axis, motion.order) for motion in motions}
    assert len(kinds) == len({motion.name for motion in motions}) == len({motion.template for motion in motions}) == len(motions)
    assert {(axis, "rise") in kinds and (axis, "fall") in kinds for axis, _ in kinds} == {True}
    assert {(axis, "out_back") in kinds for axis, order in kinds if order == "back_out"} <= {True}
