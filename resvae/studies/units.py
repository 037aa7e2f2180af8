"""The residual units of any model, as ``resvae.networks.units`` has them."""

from resvae.networks.units import Forward, Unit, replaced, units, without

__all__ = ["Forward", "Unit", "replaced", "units", "without"]
