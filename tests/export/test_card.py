"""The model card: what it says, what it leaves out, and that its code runs as it stands."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from hub_helpers import METRICS, change_config, make_folder
from PIL import Image

from timm_asr.export.card import bibliography, model_card, split_entries
from timm_asr.gates.table import get_gate, list_gates

REPO = 'alice/net'
# Each block in a process of its own that has imported timm, but never this package.
FORKED = '''
import json, os, sys
import timm, torch
assert not [name for name in sys.modules if name.startswith('timm_asr')]
for block in json.load(open('blocks.json')):
    if not (child := os.fork()):
        space = {}
        exec(block, space)
        print('ours' if 'timm_asr' in sys.modules else 'stock', type(space['model']).__name__,
              space['model'].num_classes, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
'''


def write(folder, config=None, metrics=None, **facts):
    folder.mkdir(parents=True)
    section = {'model': 'resnet20_asr_se', 'needs': ['timm_asr'], 'weights_sha256': 'ab' * 32, **facts}
    (folder / 'config.json').write_text(json.dumps({
        'architecture': 'resnet20', 'num_classes': 10, 'timm_asr': section,
        'pretrained_cfg': {'input_size': [3, 32, 32], 'mean': [0.5, 0.5, 0.5], 'std': [0.25, 0.25, 0.25]},
        **(config or {})}))
    if metrics is not None:
        (folder / 'metrics.json').write_text(json.dumps(metrics))
    return folder


def head(card):
    return yaml.safe_load(re.match(r'---\n(.*?)\n---\n', card, re.DOTALL)[1])


def table(card, section):
    rows = card.split(f'## {section}\n')[1].split('\n## ')[0].splitlines()
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', row)[1:-1]] for row in rows if row.startswith('|')][2:]


def test_its_code_runs_as_it_stands(tmp_path):
    blocks = []
    for name, kwargs in (('resnet18_asr_se', {'num_classes': 10}), ('resnet20_dia_se', {'num_classes': 5}),
                         ('resnet20_asr_se', {'in_chans': 1, 'num_classes': 3})):
        folder = make_folder(tmp_path / name, name, trainable='asr' in name, **kwargs)
        if 'dia' in name:
            change_config(folder, label_names=['ant', 'bee', 'cow', 'doe', 'emu'])
        blocks += [block.replace(f'hf-hub:{REPO}', f'local-dir:{folder}').replace(REPO, str(folder))
                   for block in re.findall(r'```python\n(.*?)```', model_card(folder, REPO), re.DOTALL)
                   if 'transformers' not in block]  # test_transformers.py has those
    Image.effect_noise((48, 40), 60).convert('RGB').save(tmp_path / 'image.jpg')
    (tmp_path / 'blocks.json').write_text(json.dumps(blocks))
    ran = subprocess.run([sys.executable, '-c', FORKED], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    printed = re.sub(r' \d+\.\d %', ' P %', re.sub(r'class \d', 'class N', ran.stdout))
    sizes = re.findall(r'torch.Size\(\[2, (\d+)\]\)', ran.stdout)
    labels = sorted(printed.splitlines()[9:14])
    assert (labels, len(sizes)) == ([f'{name} P %' for name in ('ant', 'bee', 'cow', 'doe', 'emu')], 3)
    ours = 'ours ASRCifarResNet'
    assert [line for line in printed.splitlines() if line not in labels and 'Size' not in line] == [
        *['class N P %'] * 5, 'stock ResNet 10', 'stock ResNet 0', 'ours ASRResNet 7',
        f'{ours} 5', f'{ours} 0', *['class N P %'] * 3, f'{ours} 3', f'{ours} 0', f'{ours} 7']


def test_what_it_says_of_a_run(tmp_path):
    folder = write(
        tmp_path / 'run', metrics=METRICS, recipe='cifar10_resnet20', seed=42, epoch=29, dataset='cifar10',
        arguments={'lr': 0.1, 'mean': [0.5, 0.25], 'device': 'cpu'}, torch_version='2.15.0', git_commit='c0ffee',
        files={'attention.png': 'ab', 'args.yaml': 'ab'})
    (folder / 'curve.png').write_bytes(b'of another')  # is not on the list
    card = model_card(folder, REPO)
    assert '\n# net\n' in card
    assert 'trained as `resnet20_asr_se`, with ASR (SE)' in card
    assert 'import it before the model is made' in card
    assert table(card, 'Results') == [['`resnet20_asr_se`, as trained', '91.25', '99.50', '275,183'],
                                      ['`resnet20`, these weights', '91.25', '99.50', '272,474']]
    assert 'Measured on 10,000 images of cifar10. Folding changed no logit by more than 3e-07' in ' '.join(card.split())
    assert card.count('constants') == 1  # what attention is, is said once
    assert table(card, 'Speed') == [['`resnet20_asr_se`, as trained', '2,145'], ['`resnet20`, these weights', '2,219'],
                                    ['`resnet20`, plain', '2,212']]
    assert 'on its machine (PyTorch 2.15.0)' in card
    assert '```yaml\nlr: 0.1\nmean: [0.5, 0.25]\n```' in card
    for row in (['recipe', 'cifar10_resnet20'], ['seed', '42'], ['commit of timm_asr', 'c0ffee']):
        assert row in table(card, 'Training')
    assert '![The attention](attention.png)' in card
    assert '(args.yaml)' in card
    assert 'curve.png' not in card
    assert 'ab' * 32 in card
    assert '/home' not in card
    assert card == model_card(folder, REPO)  # publishing again changes nothing


def test_it_claims_nothing_that_nobody_measured(tmp_path):
    card = model_card(write(tmp_path / 'bare'), REPO)
    assert not [title for title in ('Results', 'Speed', 'Training', 'The attention') if f'## {title}' in card]
    assert 'licen' not in card.lower()
    assert head(card) == {'library_name': 'timm', 'pipeline_tag': 'image-classification',
                          'tags': ['image-classification', 'timm', 'timm_asr']}
    assert head(model_card(tmp_path / 'bare', REPO, license='cc-by-4.0'))['license'] == 'cc-by-4.0'
    assert 'load_trainable' not in card
    attached = write(tmp_path / 'attached', model='resnet20', asr={'asr': 'ie'})
    assert '`resnet20`, trained with ASR (IE): attention' in model_card(attached, REPO)
    top1_only = model_card(write(tmp_path / 'top1', metrics={'model': 'resnet20_asr_se', 'top1': 1.0}), REPO)
    assert table(top1_only, 'Results')[0] == ['`resnet20_asr_se`, as trained', '1.00']
    no_classes = model_card(write(tmp_path / 'features', {'num_classes': 0}), REPO)
    assert head(no_classes)['pipeline_tag'] == 'image-feature-extraction'
    assert 'softmax' not in no_classes


ASR, DIA, RAS = 'huang2024stripe', 'huang2022layerwise', 'zhong2022deepening'


@pytest.mark.parametrize(('model', 'asr', 'papers'), [
    ('vit_small_asr_eca', None, [ASR, 'wang2020eca']), ('resnet164_se_asr_se', None, [ASR, 'hu2018squeeze']),
    ('resnet164_dia_srm', None, [DIA, 'lee2019srm']), ('resnet164_dia_lstm_light', None, [DIA]),
    ('resnet164_spe', None, ['zhong2022mixpooling']), ('resnet164_ras', None, [RAS]),
    ('resnet164_ras_se', None, [RAS, 'hu2018squeeze']), ('resnet50_cbam', None, ['woo2018cbam']),
    ('convnext_tiny', {'asr': 'ie', 'asr_depth': 2}, [ASR, 'liang2020instance']), ('seresnet50.a1_in1k', None, [])])
def test_the_right_papers_are_cited(tmp_path, model, asr, papers):
    card = model_card(write(tmp_path / 'run', model=model, asr=asr), REPO)
    assert re.findall(r'```bibtex\n@\w+{(\w+),\n', card) == papers
    assert ('## Citation' in card) == bool(papers)


def test_every_entry_is_bibtex():
    keys = {key for name in list_gates() for key in split_entries(get_gate(name).paper)}
    assert keys <= set(bibliography())
    for key, entry in bibliography().items():
        assert re.match(rf'@(inproceedings|article|misc){{{key},\n', entry)
        assert entry.count('{') == entry.count('}')
        assert all(f'{field} ' in entry for field in ('title', 'author', 'year'))


def test_the_head_says_it_to_the_hub(tmp_path):
    metrics = {**METRICS, 'split': 'test', 'top1_folded': 91.2, 'top1': 91.3}
    folder = write(tmp_path / 'run', metrics=metrics, base_model='timm/resnet50.a1_in1k', files={})
    found = head(model_card(folder, REPO, dataset_name='uoft-cs/cifar10'))
    assert (found['datasets'], found['base_model'], found['metrics']) == (
        ['uoft-cs/cifar10'], 'timm/resnet50.a1_in1k', ['accuracy'])
    entry, = found['model-index']
    result, = entry['results']
    assert (entry['name'], result['task']['type'], result['dataset']) == (
        'net', 'image-classification', {'name': 'cifar10', 'type': 'uoft-cs/cifar10', 'split': 'test'})
    assert [(m['type'], m['value']) for m in result['metrics']] == [('accuracy', 0.912), ('accuracy', 0.995)]
    for own, named in (('torch/cifar100', ['cifar100']), ('hfds/me/birds', ['me/birds']), ('my_photos', None)):
        one = head(model_card(write(tmp_path / own, metrics={**metrics, 'dataset': own}, dataset=own), REPO))
        assert (one.get('datasets'), 'model-index' in one) == (named, bool(named))  # a folder's name is no data set
    folder = write(
        tmp_path / 'elsewhere', metrics={**metrics, 'dataset': 'torch/mnist'}, dataset='torch/cifar10', epoch=1)
    card = model_card(folder, REPO, dataset_name='uoft-cs/cifar10')
    assert (head(card)['datasets'], head(card)['model-index'][0]['results'][0]['dataset']['type']) == (
        ['uoft-cs/cifar10'], 'mnist')
    assert '| trained on | uoft-cs/cifar10 |' in card
    assert 'of torch/mnist.' in card
    assert 'transformers' not in found['tags']  # an older folder, which transformers does not load
    folder = write(tmp_path / 'new', files={'model.safetensors': 'ab' * 32})
    assert 'transformers' in head(model_card(folder, REPO))['tags']


def test_the_figures_are_those_of_the_network_in_the_folder(tmp_path):
    metrics = {**METRICS, 'top1': 80.0, 'top1_folded': 81.0, 'top1_inference': 82.0, 'parameters_inference': 9,
               'epoch_last': 29, 'top1_last': 79.5}
    card = model_card(write(tmp_path / 'run', metrics=metrics), REPO)
    assert [row[:2] for row in table(card, 'Results')] == [
        ['`resnet20_asr_se`, as trained', '80.00'], ['`resnet20`, these weights', '81.00'],
        ['its inference form (`timm_asr.reparameterize`)', '82.00']]
    said = ' '.join(card.split())
    assert 'those of epoch 3, which was the best on these images; at the last epoch, 29, top-1 was 79.50 %.' in said
    few = model_card(write(tmp_path / 'few', {'num_classes': 5}, {**metrics, 'epoch': 29}), REPO)
    assert 'top-5' in card
    assert 'top-5' not in few
    assert 'those of epoch 29, which was the best on these images and the last.' in ' '.join(few.split())
    old = {key.replace('_folded', '_fused'): value for key, value in METRICS.items()}
    assert '`resnet20`, these weights | 91.25' in model_card(write(tmp_path / 'old', metrics=old), REPO)


def test_a_network_whose_gates_were_frozen_is_told_from_the_one_that_was_trained(tmp_path):
    for name, title in (('regnety_002', ''), ('resnet20_se', ' as `resnet20_se`')):
        folder = write(tmp_path / name, {'architecture': 'resnet20' if title else name},
                       {'images': 100, 'top1': 70.0, 'top1_folded': 60.0}, model=name, frozen_gates=9)
        card = model_card(folder, REPO)
        assert f'trained{title}; its 9 gates were replaced by constants afterwards.' in card
        assert [row[1] for row in table(card, 'Results')] == ['70.00', '60.00']
        assert 'Folding' not in card


EVIL = '](http://evil) <script>x</script> `code` | cell\n---\n# head *b* [a](b)'


def test_strings_of_a_configuration_do_nothing_in_the_card(tmp_path):
    folder = write(tmp_path / 'run', metrics={**METRICS, 'dataset': EVIL}, dataset=EVIL, recipe=EVIL, seed=1, epoch=1,
                   git_commit=EVIL, base_model=EVIL, torch_version=EVIL, weights_sha256=EVIL,
                   arguments={'opt': EVIL, 'lr': 0.1, EVIL: 1})
    card = model_card(folder, REPO, dataset_name=EVIL)
    body = card.split('\n---\n', 1)[1]
    assert '<script>' not in body
    assert '\n# head' not in body
    assert not re.search(r'(?<!\\)\]\(http://evil', re.sub(r'`[^`\n]*`', '', body))
    assert head(card)['datasets'] == [EVIL]  # a string, whatever it holds
    for row in table(card, 'Training'):
        assert len(row) == 2
