"""State inside the file: pairs of an input and an output become variables of the runtime.

x, h -> y, h'   with h' the next h   ->   x -> y
h = ReadValue(zeros)   ...   Assign(h')

A state with a free size (a cache of keys and values) begins with nothing along it, and grows. `reset_state` of an
infer request sets all back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def keep(model: Any, pairs: Mapping[str, str]) -> None:
    """Let the openvino.Model keep the states `pairs`, each an input and the output that follows it."""
    if not pairs:
        return
    from openvino import opset13 as op
    from openvino.op.util import Variable, VariableInfo

    for start, end in pairs.items():
        parameter = next(p for p in model.get_parameters() if start in p.output(0).get_names())
        result = next(r for r in model.get_results() if end in r.input_value(0).get_names())
        info = VariableInfo()
        info.data_shape, info.data_type = parameter.get_partial_shape(), parameter.get_element_type()
        info.variable_id = start
        variable = Variable(info)
        shape = [d.get_length() if d.is_static else 0 for d in parameter.get_partial_shape()]
        if 0 in shape:  # else what it begins with is zeros by itself
            read = op.read_value(op.constant(np.zeros(shape, info.data_type.to_dtype())), variable)
        else:
            read = op.read_value(variable)
        for reader in list(parameter.output(0).get_target_inputs()):
            reader.replace_source_output(read.output(0))
        last = result.input_value(0).get_node()
        if last.get_output_size() > 1 or last is parameter:
            last = op.convert(result.input_value(0), info.data_type)
        model.add_variables([variable])
        model.add_sinks([op.assign(last, variable)])
        model.remove_result(result)
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
