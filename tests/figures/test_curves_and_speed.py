"""Curves of runs, and speed against accuracy."""

import matplotlib
import pytest
from PIL import Image

from timm_asr.figures import plot_curve, plot_curves, plot_speed, style

ROWS = [{'epoch': str(n), 'train_loss': f'{2 / (n + 1)}', 'eval_loss': f'{1 / (n + 1)}', 'eval_top1': f'{10 * n}',
         'eval_top5': f'{20 * n}'} for n in range(5)]


@pytest.mark.parametrize(('draw', 'content'), [
    (plot_curve, ROWS), (plot_curve, [{'epoch': '0', 'train_loss': '1'}]),
    (plot_curves, {'plain': ROWS, 'SE': ROWS[:3]}),
    (plot_speed, [{'model': 'a', 'images_per_second': 10, 'parameters': 1e6, 'top1': 90},
                  {'model': 'b', 'images_per_second': 20, 'parameters': 2e6, 'top1': 91}, {'model': 'c', 'top1': 1}])])
def test_an_image_of_the_width_of_a_page_in_a_style_of_its_own(draw, content, tmp_path):
    before = dict(matplotlib.rcParams)
    draw(content, tmp_path / 'figure.png')
    image = Image.open(tmp_path / 'figure.png').convert('RGB')
    assert image.width == round(style.WIDTH * style.DPI)
    assert len(image.getcolors(1 << 20)) > 30
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'matplotlib', None)
    with pytest.raises(ImportError, match='Figures need matplotlib: pip install matplotlib'):
        plot_curve(ROWS, tmp_path / 'figure.png')
