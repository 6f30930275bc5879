# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The noise schedules: how much is masked at time t, and how much one step of the reverse process reveals.

The forward process masks the tokens of a text, each at a random time of its own. The reverse process starts from masks
and reveals tokens, step by step.

    t        time in [0, 1]; 0 is clean text, 1 is (nearly) all masks
    sigma    total noise sigma(t); a token is masked at time t with probability 1 - exp(-sigma)
    dsigma   the rate of the noise, sigma'(t)

All functions are pure. The methods `sigma` and `dsigma` compute in the dtype of `t`.
Source: arXiv:2406.03736 (version 4), section 2.1. The log-linear schedule is in section D.4, the geometric one in the
authors' code.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogLinearNoise:
    """The log-linear schedule sigma(t) = -log(1 - (1 - eps) t): the mask probability (1 - eps) t is linear in time."""

    eps: float = 1e-3

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.eps) * t)

    def dsigma(self, t: Tensor) -> Tensor:
        return (1 - self.eps) / (1 - (1 - self.eps) * t)


@dataclass(frozen=True)
class GeometricNoise:
    """The geometric schedule sigma(t) = sigma_min^(1 - t) sigma_max^t."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def dsigma(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)


Noise = LogLinearNoise | GeometricNoise


def get_noise(config) -> Noise:
    """Returns the noise schedule that a [`RaddConfig`] names."""
    if config.noise_type == "loglinear":
        return LogLinearNoise(config.noise_eps)
    if config.noise_type == "geometric":
        return GeometricNoise(config.sigma_min, config.sigma_max)
    raise ValueError(f"noise_type={config.noise_type!r} must be 'loglinear' or 'geometric'.")


# The grid of the reverse process ends here, just above t = 0, as in the authors' code.
FINAL_TIME = 1e-5


def reveal_probabilities(noise: Noise, method: str, steps: int) -> Tensor:
    """Computes, for each step of the reverse process, the probability that it reveals a token that is still masked.

    The grid is t_0 = 1 > ... > t_n = 1e-5. A step goes from t down to s = t - dt:

        tweedie   (exp(-sigma(s)) - exp(-sigma(t))) / (1 - exp(-sigma(t)))         arXiv:2406.03736, eq. (D.14)
        euler     min(1, dt sigma'(t) exp(-sigma(t)) / (1 - exp(-sigma(t))))       eq. (D.15), first order in dt

    The last step has probability 1, so it leaves no mask. With log-linear noise both formulas give dt / t, eq. (D.16).

    The computation is in float64, and the difference of exponentials is written as an `expm1`. In float32 the
    subtraction would lose half of the digits where sigma(t) and sigma(s) are close.

    Returns:
        (steps,) float64 on the CPU.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    dt = (1 - FINAL_TIME) / steps
    t = torch.linspace(1, FINAL_TIME, steps + 1, dtype=torch.float64, device="cpu")[:-1]  # (steps,) starts of steps
    sigma = noise.sigma(t)
    masked = -torch.expm1(-sigma)  # 1 - exp(-sigma), the probability of being masked at t
    if method == "tweedie":
        reveal = (-sigma).exp() * torch.expm1(sigma - noise.sigma(t - dt)) / masked
    elif method == "euler":
        reveal = (dt * noise.dsigma(t) * (-sigma).exp() / masked).clamp(max=1)
    else:
        raise ValueError(f"method={method!r} must be 'tweedie' or 'euler'.")
    reveal[-1] = 1
    return reveal


def expected_evaluations(noise: Noise, method: str, steps: int, n_masked: int) -> float:
    """Computes the mean number of network evaluations of a row with `n_masked` masks on a grid of `steps`.

    With n steps and m masks it is sum_i 1 - (1 - q_i)^m (arXiv:2406.03736, eq. (D.30)). Here r_i is the probability of
    [`reveal_probabilities`], and q_i = r_i prod_{j<i} (1 - r_j) the probability that step i reveals a given position.
    For log-linear noise the sum is n (1 - (1 - 1/n)^m), eq. (3.4).
    """
    reveal = reveal_probabilities(noise, method, steps)  # (n,) r
    revealed_before = 1 - (1 - reveal).cumprod(dim=0)  # (n,) P(reveal step <= i)
    q = revealed_before.diff(prepend=reveal.new_zeros(1))
    return float((1 - (1 - q) ** n_masked).sum())


__all__ = [
    "FINAL_TIME",
    "GeometricNoise",
    "LogLinearNoise",
    "Noise",
    "expected_evaluations",
    "get_noise",
    "reveal_probabilities",
]
