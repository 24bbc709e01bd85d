"""The names of the files that a run, an export and a freeze write, each said once."""

# Of an export: the folder that timm loads.
WEIGHTS, CONFIG, METRICS, TRAINABLE = 'model.safetensors', 'config.json', 'metrics.json', 'trainable'
CARD, CODE = 'README.md', 'modeling_timm_asr.py'
# Of a run.
LAST, BEST = 'last.pth.tar', 'model_best.pth.tar'
ARGS, SUMMARY, CURVE, ATTENTION = 'args.yaml', 'summary.csv', 'curve.png', 'attention.png'
# Of a frozen network: the program where no name stands for it, the report, its plot.
PROGRAM, GATES, GATES_PLOT = 'model.pt2', 'gates.json', 'gates.png'

WEIGHT_SUFFIXES = ('.safetensors', '.pth', '.pth.tar', '.pt', '.bin', '.ckpt')
#: Key of this package's section in ``config.json``, and of its entries elsewhere.
KEY = 'timm_asr'
