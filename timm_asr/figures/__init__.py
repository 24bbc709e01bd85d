"""Everything that draws, in one style; needs the extra ``plot`` (matplotlib).

The ending of ``path`` names the format of the image; ``title`` stands above the panels, ``caption`` below them.
"""

from .gates import plot_deviations, plot_differences, plot_frozen, plot_stripes
from .looking import plot_feature_integration, plot_gradients, plot_looks
from .training import plot_attention, plot_curve, plot_curves, plot_speed

__all__ = [
    'plot_attention', 'plot_curve', 'plot_curves', 'plot_deviations', 'plot_differences', 'plot_feature_integration',
    'plot_frozen', 'plot_gradients', 'plot_looks', 'plot_speed', 'plot_stripes']
