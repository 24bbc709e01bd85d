"""The state of a run as a checkpoint holds it, and a run brought back to such a state."""

from collections.abc import Mapping
from typing import Any

from ..checkpoints.open import trained_as
from ..checkpoints.provenance import made_by
from ..checkpoints.read import first_line
from ..checkpoints.weights import load_weights, state_dict_of
from ..errors import BadInput
from .checkpoint import Found
from .loaders import label_names
from .loop import Training
from .options import plain_options

#: The state of PyTorch's plateau schedule.
_PLATEAU = {'best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch'}


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


def restore(training: Training, found: Found) -> None:
    """Load model, EMA, optimizer and scaler; ``BadInput`` where the checkpoint is not one of such a run."""
    path, content = found
    args, ema, scaler = training.args, training.task.get_trainable_module(ema=True), training.scaler
    if any(content.get(key) is None for key in ('state_dict', 'optimizer', 'epoch')):
        raise BadInput(f'--resume {path}: not a training checkpoint; load weights alone by --initial-checkpoint')
    if content.get('arch') != args.model:
        raise BadInput(f'--resume {path}: it is a checkpoint of {content.get("arch")}, not of {args.model}')
    had, asked = (f'with --asr {gate}' if gate else 'without --asr'
                  for gate in (trained_as(content).get('asr'), args.asr))
    if had != asked:
        raise BadInput(f'--resume {path}: it was trained {had}, not {asked}')
    load_weights(training.task.get_trainable_module(), path, state_dict_of(content, path=path), args.model)
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


def place_schedule(training: Training, content: Mapping[str, Any], start_epoch: int) -> None:
    """Bring the learning rate to where it is at the start of an epoch."""
    scheduler = training.scheduler
    if scheduler is None or start_epoch == 0:
        return
    plateau = getattr(scheduler, 'lr_scheduler', None)
    if plateau is None and training.args.sched_on_updates:
        scheduler.step_update(start_epoch * training.updates_per_epoch)
    elif plateau is None:
        scheduler.step(start_epoch)
    elif 'plateau' in content and not training.args.no_resume_opt:
        state = content['plateau']
        scheduler.restore_lr = state.get('restore_lr')
        for key in _PLATEAU & state.keys():
            setattr(plateau, key, state[key])
        # timm's constructor set the warm-up rate; the optimizer's own state has the true one.
        for group, saved in zip(training.optimizer.param_groups, content['optimizer']['param_groups'], strict=True):
            group['lr'] = saved['lr']
