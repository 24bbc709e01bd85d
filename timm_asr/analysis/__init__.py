"""What trained models show, as numbers; ``timm_asr.figures`` draws them."""

from .bn_noise import Noise, bn_noise, parse_noise
from .stripes import StripeReport, measure_stripes, stripe_differences

__all__ = ['Noise', 'StripeReport', 'bn_noise', 'measure_stripes', 'parse_noise', 'stripe_differences']
