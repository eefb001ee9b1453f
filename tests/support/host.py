"""Operations whose results the host must read, for which it would wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_READ = {
    _aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default, _aten.nonzero.default,
    _aten.masked_select.default, _aten.bincount.default, _aten._unique2.default, _aten.unique_consecutive.default,
}  # fmt: skip
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class HostReads(TorchDispatchMode):
    """Lists, in ``found``, the operations inside whose shape or value depends on the data in a tensor."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        uncounted = function is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        by_mask = function in _INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if function in _READ or uncounted or by_mask:
            self.found.append(str(function))
        return function(*args, **kwargs)
