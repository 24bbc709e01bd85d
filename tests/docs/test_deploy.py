"""The figures that the pages about deployment quote are what was measured."""

import csv
import re

import pytest
from pages import ROOT

ROWS = list(csv.DictReader((ROOT / 'results' / 'deploy.csv').open()))
MEASURED = {row['network']: (float(row['top1_float']), float(row['top1_int8']))
            for row in ROWS if row['section'] == 'accuracy'}


@pytest.mark.parametrize(('page', 'networks'), [
    ('deploy', ['resnet20', 'resnet20_asr_se', 'resnet20_se', 'resnet20_se, frozen']),
    ('remove_se', ['resnet20_se', 'resnet20_se, frozen', 'resnet20_asr_se'])])
def test_accuracy_is_that_of_the_results(page, networks):
    text = (ROOT / 'docs' / f'{page}.md').read_text()
    rows = re.findall(r'^\|.*\| ([\d.]+) \| ([\d.]+) \|$', text, re.MULTILINE)
    assert [tuple(map(float, row)) for row in rows] == [MEASURED[name] for name in networks]


def test_no_row_loses_more_by_int8_than_the_page_says():
    bound = re.search(r'No row loses more than ([\d.]+) points', (ROOT / 'docs' / 'deploy.md').read_text())
    assert max(before - after for before, after in MEASURED.values()) <= float(bound[1])


def test_times_are_those_of_the_results():
    clients = ('eager', 'torch.compile', 'ONNX Runtime', 'ONNX Runtime, int8', 'OpenVINO')
    networks = ('asr_se', 'se', 'se, frozen', 'eca', 'ie', 'srm', 'spe', 'ras', 'dia_se', 'dia_lstm',
                'repvgg_a0, asr_se')
    times = {(row['network'], row['client'], row['batch_size']): f'{float(row["over_plain"]):.2f}'
             for row in ROWS if row['section'].startswith('speed')}
    wanted = [[' / '.join(times.get((network, client, batch), '') for batch in ('1', '64')).strip(' /')
               for client in clients] for network in networks]
    lines = re.findall(r'^\|[^|]+\| (\d.+ / .+) \|$', (ROOT / 'docs' / 'deploy.md').read_text(), re.MULTILINE)
    assert [[cell.strip() for cell in line.split('|')] for line in lines] == wanted
