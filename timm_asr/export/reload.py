"""The script of the fresh process that loads a written folder as its users will, and compares.

It is run by its path, never imported, and reads one line of JSON for each folder on its standard input::

    {"folder": ..., "needs": [...], "case": FILE, "allowed": 1e-5, "model": {...}, "data": {...}, "label_names": [...]}

``case`` is a safetensors file of ``images`` and the ``logits`` wanted. The answer is a line of JSON, with ``error`` if
the folder does not do what it promises. A folder with empty ``needs`` is loaded with this package out of reach.
"""

import importlib
import json
import logging
import sys
import warnings


def reload(task: dict) -> dict:
    """Load one folder; the answer says how far its logits are from those wanted."""
    if task['needs']:
        if sys.modules.get('timm_asr', ...) is None:
            del sys.modules['timm_asr']
        for name in task['needs']:
            importlib.import_module(name)
    else:
        sys.modules['timm_asr'] = None  # any attempt to import it fails
    import timm
    import torch
    from safetensors.torch import load_file

    folder = task['folder']
    if task.get('trainable'):
        from timm_asr.export.trainable import create_trainable
        model = create_trainable(folder).eval()
    else:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    written, loaded = load_file(f'{folder}/model.safetensors'), model.state_dict()
    if set(written) != set(loaded):
        return {'error': f"the key '{sorted(set(written) ^ set(loaded))[0]}' is in one of file and model only"}
    for name, tensor in written.items():
        if not torch.equal(tensor.to(loaded[name].dtype), loaded[name]):
            return {'error': f"'{name}' was changed while loading"}
    for name, wanted in task['model'].items():
        if getattr(model, name, wanted) != wanted:
            return {'error': f'{name} is {getattr(model, name)} where it was {wanted}'}
    data = json.loads(json.dumps(timm.data.resolve_model_data_config(model)))
    for name, wanted in task['data'].items():
        if data[name] != wanted:
            return {'error': f'{name} of the images is {data[name]} where it was {wanted}'}
    names = model.pretrained_cfg.get('label_names')
    if task['label_names'] and list(names or ()) != task['label_names']:
        return {'error': f'its label names are {names}'}
    case = load_file(task['case'])
    with torch.inference_mode():
        logits = model(case['images'])
    if logits.shape != case['logits'].shape:
        return {'error': f'its output is {tuple(logits.shape)} where it was {tuple(case["logits"].shape)}'}
    difference = (logits - case['logits']).abs().max().item()
    relative = difference / max(case['logits'].abs().max().item(), 1e-30)
    if not relative <= task['allowed']:
        return {'error': f'its logits differ by {relative:.1e} of the largest (allowed {task["allowed"]:.0e})'}
    return {'difference': difference, 'relative': relative, 'class': f'{type(model).__module__}.{type(model).__name__}'}


def main() -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    import timm  # noqa: F401 - while the other process still folds and writes
    for line in sys.stdin:
        try:
            answer = reload(json.loads(line))
        except Exception as error:
            lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
            answer = {'error': ' '.join(lines[:2]).rstrip('.')[:300]}  # torch says what is wrong in the second line
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
