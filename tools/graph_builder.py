"""A few lines over onnx.helper that keep the converters readable."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


class GraphBuilder:
    """Collects nodes and initializers in order; every method that adds one returns the name of its value."""

    def __init__(self):
        self.nodes = []
        self.initializers = {}

    def const(self, name, array):
        """An initializer. Adding the same name again is free, so that callers need not remember."""
        if name not in self.initializers:
            array = np.asarray(array)
            # ascontiguousarray turns a scalar into a vector of one; the reshape turns it back.
            contiguous = np.ascontiguousarray(array).reshape(array.shape)
            self.initializers[name] = numpy_helper.from_array(contiguous, name)
        return name

    def node(self, op_type, inputs, name, output=None, **attributes):
        """A node of one output, called `<name>_out` unless `output` says otherwise."""
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def model(self, name, inputs, outputs, opset):
        """The finished model, checked."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.initializers.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="midtread-tools"
        )
        onnx.checker.check_model(model, full_check=True)
        return model
