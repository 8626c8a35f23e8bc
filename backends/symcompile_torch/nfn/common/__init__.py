"""The data that `symcompile_torch.nfn` works on: features of networks' weights, and their shapes.

In: state_dicts of torch networks. Out: `WeightSpaceFeatures`, a `NetworkSpec`, and the way back.
"""

from symcompile_torch.nfn.common.features import WeightSpaceFeatures
from symcompile_torch.nfn.common.specs import ArraySpec, NetworkSpec, network_spec_from_wsfeat
from symcompile_torch.nfn.common.state import (
    params_to_func_params,
    params_to_state_dicts,
    state_dict_to_tensors,
)

__all__ = [
    "ArraySpec",
    "NetworkSpec",
    "WeightSpaceFeatures",
    "network_spec_from_wsfeat",
    "params_to_func_params",
    "params_to_state_dicts",
    "state_dict_to_tensors",
]
