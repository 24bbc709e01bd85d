"""The accuracy that the pages about deployment quote is what was measured."""

import csv
import re

import pytest
from pages import ROOT

MEASURED = {row['network']: (float(row['top1_float']), float(row['top1_int8']))
            for row in csv.DictReader((ROOT / 'results' / 'deploy.csv').open()) if row['section'] == 'accuracy'}


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
