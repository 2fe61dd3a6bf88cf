"""The folded network as an ONNX model of fixed shape, float32."""

from .graph import Conv, nodes, numpy


def serialized(folded, frames):
    """Bytes of the model for inputs of the shape of `frames`."""
    from onnx import TensorProto, checker, helper, numpy_helper

    made, weights = [], []
    for node in nodes(folded, frames.shape[1]):
        if not isinstance(node, Conv):
            made.append(helper.make_node("Add", node.inputs, [node.out]))
            continue
        names = [f"{node.out}.weight", f"{node.out}.bias"]
        weights += [numpy_helper.from_array(numpy(t), n) for n, t in zip(names, (node.weight, node.bias))]
        linear = node.out + ".linear" if node.relu else node.out
        made.append(helper.make_node("Conv", [*node.inputs, *names], [linear], kernel_shape=[3, 3], pads=[1] * 4))
        if node.relu:
            made.append(helper.make_node("Relu", [linear], [node.out]))
    n, t, h, w = frames.shape
    graph = helper.make_graph(
        made, "dblrnet", [helper.make_tensor_value_info("frames", TensorProto.FLOAT, [n, t, h, w])],
        [helper.make_tensor_value_info("restored", TensorProto.FLOAT, [n, 1, h, w])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()
