"""The benchmarks run, at a size at which their figures mean nothing."""

import sys

import pytest

from benchmarks import estimators, orders
from radd_hf.settings_radd import ORDERS


@pytest.mark.parametrize("command", ["agreement --orders 2", "efficiency --reference 4 --repeats 2"])
def test_a_table_of_every_estimator_is_printed(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["estimators", *command.split(), "--blocks", "1", "--passes", "2"])
    estimators.main()
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in ("k_stratified", "k_DCE", "lambda_DCE"))


def test_a_table_of_every_order_is_printed(capsys):
    orders.main(["--blocks", "2", "--length", "8", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "2 blocks of 8 tokens" in printed
    assert all(f"| {order} | " in printed for order in ORDERS)
