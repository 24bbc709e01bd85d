"""What trained models show, as numbers; ``timm_asr.figures`` draws them."""

from .stripes import StripeReport, measure_stripes, stripe_differences

__all__ = ['StripeReport', 'measure_stripes', 'stripe_differences']
