"""The log-linear schedule in Python: what MDLM trains with, and a place to start from.

    maskdiff train noise.type=python:loglinear.py:LogLinear
    maskdiff plugins check loglinear.py:LogLinear --kind noise
"""
import torch


class LogLinear:
    """alpha(t) = 1 - (1 - eps) t; times and results [B] float64."""

    def __init__(self, context, eps=1e-3):
        self.eps = eps

    def sigma(self, t):
        return -torch.log1p(-(1 - self.eps) * t)

    def dsigma(self, t):
        return (1 - self.eps) / (1 - (1 - self.eps) * t)

    def time_of_alpha(self, alpha):
        return (1 - alpha) / (1 - self.eps)

    def sigma_range(self):
        return self.eps, -torch.tensor(self.eps, dtype=torch.float64).log().item()
