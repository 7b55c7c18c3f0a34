"""Exceptions in backward: who raised them, and where.

libtorch keeps only the text of an exception in backward, and of one in a hook not even that. So the text says who raised it and where, and that of
a hook is printed as well.
"""
import functools
import os
import sys
import traceback

import torch
from torch import nn

# torch's own, before ours stand in their places.
watch = torch.Tensor.register_hook
_apply = torch.autograd.function.BackwardCFunction.apply
_saved = torch.autograd.graph.saved_tensors_hooks.__init__


def _line(error):
    """FILE:LINE of the user's at which an exception arose, and a colon."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(('maskdiff/', os.path.dirname(torch.__file__)))]
    return f'{own[-1].filename}:{own[-1].lineno}: ' if own else ''


def _told(name, function, prints=True):
    """The function; where it raises, the text names it. `name` is made of what it is called with."""
    @functools.wraps(function)
    def call(*args, **named):
        try:
            return function(*args, **named)
        except BaseException as error:
            # The place before the words, which may have several lines.
            said = f'{_line(error)}`{name(args)}` raised {type(error).__name__}: {error}'
            if prints:
                print(said, file=sys.stderr)
            raise RuntimeError(said) from error
    return call


def _hook(function, of=''):
    return _told(lambda _: f'hook {getattr(function, "__qualname__", function)}{of}', function)


def _wrapping(owner, name):
    """The method of `owner` that registers a hook, told where it raises."""
    register = getattr(owner, name)

    @functools.wraps(register)
    def call(self, hook, *args, **named):
        of = f' of {type(self).__qualname__}' if isinstance(self, nn.Module) else ''
        return register(self, _hook(hook, of), *args, **named)
    setattr(owner, name, call)


@functools.wraps(_saved)
def _saving(self, pack_hook, unpack_hook):
    # Parts that are computed again (`torch.utils.checkpoint`) come here too: their own exceptions are told by what they compute.
    _saved(self, pack_hook, _hook(unpack_hook))


torch.autograd.function.BackwardCFunction.apply = _told(
    lambda args: f'{type(args[0])._forward_cls.__qualname__}.backward', _apply, prints=False)
torch.autograd.graph.saved_tensors_hooks.__init__ = _saving
for _owner, _names in ((torch.Tensor, ('register_hook', 'register_post_accumulate_grad_hook')),
                       (nn.Module, ('register_full_backward_hook', 'register_full_backward_pre_hook'))):
    for _name in _names:
        _wrapping(_owner, _name)
