"""The state of a run as a checkpoint holds it, and a run brought back to such a state."""

import logging
from pathlib import Path
from typing import Any

from ..asr.options import ASR_KEYWORDS
from ..checkpoints.open import trained_as
from ..checkpoints.provenance import made_by
from ..checkpoints.read import first_line, read_checkpoint
from ..checkpoints.weights import load_weights, state_dict_of
from ..errors import BadInput
from .checkpoint import find_checkpoint
from .loaders import label_names
from .loop import Training
from .options import plain_options
from .run_folder import DEFAULT_OUTPUT

_logger = logging.getLogger(__name__)
#: The state of PyTorch's plateau schedule.
_PLATEAU = {'best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch'}


def adopt_asr(args: Any) -> None:
    """Let a run that goes on from a named checkpoint (or experiment) have its ASR and last norms without being told;
    BadInput where the command names another gate than the checkpoint.
    """
    path = Path(args.resume) if args.resume else None
    if args.resume == 'auto':
        path = find_checkpoint(Path(args.output or DEFAULT_OUTPUT, args.experiment)) if args.experiment else None
    if path is None or not path.is_file():  # which is said where it is looked for
        return
    said = trained_as(read_checkpoint(path))
    if said.get('model') != args.model:
        return
    if args.last_norm_init is None:
        args.last_norm_init = said.get('last_norm_init')
    if args.asr and said.get('asr') != args.asr:
        had = f'with --asr {said["asr"]}' if said.get('asr') else 'without --asr'
        raise BadInput(f'--resume {path}: it was trained {had}, not with --asr {args.asr}')
    if said.get('asr') and not args.asr:
        args.asr = said['asr']
        _logger.info(f'{path} was trained with --asr {args.asr}: so it goes on.')
    own = {key: value for key, value in (said.get('model_kwargs') or {}).items() if key in ASR_KEYWORDS}
    args.model_kwargs = {**own, **args.model_kwargs} if args.asr else args.model_kwargs


def capture(training: Training) -> dict[str, Any]:
    """Everything a checkpoint holds about a run but its place in it.

    Random numbers need no state: each epoch starts from a seed made of ``--seed``, the epoch and the process.
    """
    task, scheduler = training.task, training.scheduler
    state: dict[str, Any] = {
        'arch': training.args.model, 'args': plain_options(training.args), 'made_by': made_by(),
        'label_names': label_names(training.loaders.train.dataset, training.args.num_classes),
        'optimizer': training.optimizer.state_dict(),
        **task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    if training.scaler is not None:
        state[training.scaler.state_dict_key] = training.scaler.state_dict()
    if (ema := task.get_trainable_module(ema=True)) is not None:
        state['ema_generator'] = ema._sr_generator.get_state()
    if (plateau := getattr(scheduler, 'lr_scheduler', None)) is not None:  # the others are functions of the epoch
        state['plateau'] = {'restore_lr': scheduler.restore_lr,
                            **{key: getattr(plateau, key) for key in sorted(_PLATEAU)}}
    return state


def read_state(path: Path, args: Any) -> dict[str, Any]:
    """A checkpoint to go on from; BadInput if it is damaged, would run code, or is of another model."""
    content = read_checkpoint(path)
    if any(content.get(key) is None for key in ('state_dict', 'optimizer', 'epoch')):
        raise BadInput(f'--resume {path}: not a training checkpoint; load weights alone by --initial-checkpoint')
    if content.get('arch') != args.model:
        raise BadInput(f'--resume {path}: it is a checkpoint of {content.get("arch")}, not of {args.model}')
    return content


def restore_weights(training: Training, content: dict[str, Any], path: Path) -> None:
    """Load the model; before EMA is set up, which starts as a copy of it."""
    load_weights(training.task.get_trainable_module(), path, state_dict_of(content, path=path), training.args.model)


def restore(training: Training, content: dict[str, Any], path: Path) -> None:
    """Load optimizer, scaler and EMA."""
    args, ema, scaler = training.args, training.task.get_trainable_module(ema=True), training.scaler
    if ema is not None:
        load_weights(ema.module, path, state_dict_of(content, use_ema='state_dict_ema' in content, path=path),
                     args.model)
        if 'ema_generator' in content:
            ema._sr_generator.set_state(content['ema_generator'].cpu())
    if args.no_resume_opt:
        return
    try:
        training.optimizer.load_state_dict(content['optimizer'])
    except Exception as error:  # whatever an optimizer says to a state that is not its own
        raise BadInput(f'--resume {path}: its optimizer does not fit --opt {args.opt} ({first_line(error)}); '
                       'use --no-resume-opt to go on without it') from None
    if scaler is not None and scaler.state_dict_key in content:
        scaler.load_state_dict(content[scaler.state_dict_key])


def place_schedule(training: Training, content: dict[str, Any] | None, start_epoch: int) -> None:
    """Bring the learning rate to where it is at the start of an epoch."""
    scheduler = training.scheduler
    if scheduler is None or start_epoch == 0:
        return
    plateau = getattr(scheduler, 'lr_scheduler', None)
    if plateau is None and training.args.sched_on_updates:
        scheduler.step_update(start_epoch * training.updates_per_epoch)
    elif plateau is None:
        scheduler.step(start_epoch)
    elif content is not None and 'plateau' in content and not training.args.no_resume_opt:
        state = content['plateau']
        scheduler.restore_lr = state.get('restore_lr')
        for key in _PLATEAU & state.keys():
            setattr(plateau, key, state[key])
        # timm's constructor set the warm-up rate; the optimizer's own state has the true one.
        for group, saved in zip(training.optimizer.param_groups, content['optimizer']['param_groups'], strict=True):
            group['lr'] = saved['lr']
