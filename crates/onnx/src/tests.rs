//! The crate's promises, on models small enough to be written down.

use std::{error::Error as _, fs, path::Path, time::Instant};

use bytes::Bytes;
use midtread_graph::{AttrValue, DataType, Dim, Model, Tensor, TypeKind};
use proptest::prelude::*;
use prost::Message as _;

use crate::{
    Error, ExternalData, Problem, SaveOptions, from_bytes, load,
    proto::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        SparseTensorProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
        ValueInfoProto,
        tensor_proto::Segment,
        tensor_shape_proto::{Dimension, dimension::Value as Size},
        type_proto,
    },
    save, tensor_from_bytes, tensor_to_bytes, to_bytes,
};

fn text(s: &str) -> Option<String> {
    Some(s.to_owned())
}

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|&d| Dimension { value: Some(Size::DimValue(d)), denotation: None })
        .collect();
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: text(name), r#type: Some(ty), ..Default::default() }
}

fn op(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    NodeProto {
        op_type: text(op_type),
        input: names(inputs),
        output: names(outputs),
        ..Default::default()
    }
}

fn attribute(name: &str, kind: i32) -> AttributeProto {
    AttributeProto { name: text(name), r#type: Some(kind), ..Default::default() }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw = values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    TensorProto {
        name: text(name).filter(|name| !name.is_empty()),
        dims: dims.to_vec(),
        data_type: Some(1),
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: text(key), value: text(value) }
}

fn in_model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: text(""), version: Some(17) }],
        producer_name: text("test"),
        graph: Some(graph),
        ..Default::default()
    }
}

/// `Y = Add(X, W)`
fn add() -> ModelProto {
    in_model(GraphProto {
        name: text("g"),
        node: vec![op("Add", &["X", "W"], &["Y"])],
        initializer: vec![floats("W", &[2], &[1.0, -2.5])],
        input: vec![info("X", &[2])],
        output: vec![info("Y", &[2])],
        ..Default::default()
    })
}

/// A model with something in every field that there is.
fn everything() -> ModelProto {
    let then_branch = GraphProto {
        name: text("then"),
        // `t` waits for what the graph around makes.
        node: vec![op("Relu", &["y0"], &["t"])],
        output: vec![info("t", &[2])],
        ..Default::default()
    };
    let else_branch = GraphProto {
        name: text("else"),
        node: vec![op("Identity", &["W"], &["e"])],
        output: vec![info("e", &[2])],
        ..Default::default()
    };
    let sparse = SparseTensorProto {
        values: Some(floats("S", &[1], &[3.0])),
        indices: Some(TensorProto {
            dims: vec![1],
            data_type: Some(7),
            int64_data: vec![1],
            ..Default::default()
        }),
        dims: vec![2],
    };
    let mut constant = op("Constant", &[], &["c"]);
    constant.attribute.push(AttributeProto {
        t: Some(Box::new(floats("its_name", &[2], &[0.5, f32::NAN]))),
        doc_string: text("documented"),
        ..attribute("value", 4)
    });
    let mut branch = op("If", &["cond"], &["z"]);
    branch.name = text("branch");
    branch.attribute = vec![
        AttributeProto { g: Some(Box::new(then_branch)), ..attribute("then_branch", 5) },
        AttributeProto { g: Some(Box::new(else_branch)), ..attribute("else_branch", 5) },
    ];
    let ty = info("", &[1]).r#type.unwrap();
    let mut custom = op("Everything", &["z", "", "S", "c", ""], &["Y", "", "unused"]);
    custom.domain = text("com.example");
    custom.overload = text("second");
    custom.doc_string = text("");
    custom.metadata_props = vec![entry("k", "v"), entry("k2", "")];
    custom.device_configurations = vec![Bytes::from_static(b"\x0a\x01c\x18\x02")];
    custom.attribute = vec![
        AttributeProto { f: Some(-0.0), ..attribute("float", 1) },
        AttributeProto { i: Some(i64::MIN), ..attribute("int", 2) },
        AttributeProto { s: Some(Bytes::from_static(b"\xff\0")), ..attribute("string", 3) },
        AttributeProto { floats: vec![1.0, f32::INFINITY], ..attribute("floats", 6) },
        AttributeProto { ints: vec![0, -1, 300], ..attribute("ints", 7) },
        AttributeProto {
            strings: vec![Bytes::new(), Bytes::from_static(b"x")],
            ..attribute("strings", 8)
        },
        AttributeProto {
            tensors: vec![floats("", &[0], &[]), floats("", &[], &[2.0])],
            ..attribute("tensors", 9)
        },
        AttributeProto { graphs: vec![GraphProto::default()], ..attribute("graphs", 10) },
        AttributeProto {
            sparse_tensor: Some(sparse.encode_to_vec().into()),
            ..attribute("sparse", 11)
        },
        AttributeProto {
            sparse_tensors: vec![sparse.encode_to_vec().into(); 2],
            ..attribute("sparses", 12)
        },
        AttributeProto {
            tp: Some(Box::new(ty.clone())),
            doc_string: text("d"),
            ..attribute("type", 13)
        },
        AttributeProto {
            type_protos: vec![ty.clone(), TypeProto::default()],
            ..attribute("types", 14)
        },
        attribute("no_ints", 7),
    ];
    let kinds = {
        use type_proto::{Map, Opaque, Optional, Sequence, SparseTensor, Value};
        let boxed = || Some(Box::new(ty.clone()));
        [
            Value::SequenceType(Box::new(Sequence { elem_type: boxed() })),
            Value::MapType(Box::new(Map { key_type: Some(7), value_type: boxed() })),
            Value::OptionalType(Box::new(Optional { elem_type: boxed() })),
            Value::SparseTensorType(SparseTensor { elem_type: Some(11), shape: None }),
            Value::OpaqueType(Opaque { domain: text("d"), name: text("n") }),
        ]
    };
    let typed = kinds.into_iter().enumerate().map(|(i, value)| ValueInfoProto {
        name: Some(format!("typed_{i}")),
        r#type: Some(TypeProto { value: Some(value), denotation: text("IMAGE") }),
        ..Default::default()
    });
    let mut x = info("X", &[2]);
    x.doc_string = text("the input");
    x.metadata_props = vec![entry("a", "b")];
    let dim = vec![
        Dimension {
            value: Some(Size::DimParam("batch".to_owned())),
            denotation: text("DATA_BATCH"),
        },
        Dimension { value: None, denotation: None },
    ];
    let shape = Some(TensorShapeProto { dim });
    let tensor = type_proto::Tensor { elem_type: Some(1), shape };
    let symbolic = ValueInfoProto {
        name: text("y0"),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            denotation: None,
        }),
        ..Default::default()
    };
    let graph = GraphProto {
        name: text("g"),
        node: vec![op("Add", &["X", "W"], &["y0"]), constant, branch, custom],
        initializer: vec![
            TensorProto { metadata_props: vec![entry("m", "n")], ..floats("W", &[2], &[1.0, 2.0]) },
            TensorProto {
                name: text("names"),
                dims: vec![2],
                data_type: Some(8),
                string_data: vec![Bytes::from_static(b"a"), Bytes::new()],
                doc_string: text("some strings"),
                ..Default::default()
            },
        ],
        sparse_initializer: vec![sparse.encode_to_vec().into()],
        doc_string: text(""),
        input: vec![x, info("cond", &[]), info("W", &[2])],
        output: vec![info("Y", &[2]), info("z", &[])],
        value_info: std::iter::once(symbolic).chain(typed).collect(),
        quantization_annotation: vec![Bytes::from_static(b"\x0a\x01X")],
        metadata_props: vec![entry("graph", "meta")],
    };
    let function = FunctionProto {
        name: text("Everything"),
        domain: text("com.example"),
        overload: text("second"),
        input: vec!["a".to_owned()],
        output: vec!["b".to_owned()],
        attribute: vec!["alpha".to_owned()],
        attribute_proto: vec![AttributeProto { f: Some(1.5), ..attribute("beta", 1) }],
        node: vec![NodeProto {
            attribute: vec![AttributeProto {
                ref_attr_name: text("alpha"),
                ..attribute("alpha", 1)
            }],
            ..op("LeakyRelu", &["a"], &["b"])
        }],
        doc_string: text("a function"),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        value_info: vec![info("b", &[2])],
        metadata_props: vec![entry("f", "m")],
    };
    ModelProto {
        ir_version: Some(14),
        producer_version: text(""),
        domain: text("org.example"),
        model_version: Some(0),
        doc_string: text("doc"),
        metadata_props: vec![entry("author", "me")],
        training_info: vec![Bytes::from_static(b"\x0a\x00")],
        functions: vec![function],
        configuration: vec![Bytes::from_static(b"\x0a\x01c\x10\x02")],
        ..in_model(graph)
    }
}

fn read(proto: &ModelProto) -> Result<Model, Error> {
    from_bytes(proto.encode_to_vec().into(), None)
}

/// The whole chain of an error.
fn message(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn refusal(proto: &ModelProto) -> String {
    message(&read(proto).expect_err("refused"))
}

#[test]
fn a_file_with_everything_in_it_comes_back_the_same() {
    for proto in [add(), everything()] {
        let model = read(&proto).unwrap_or_else(|e| panic!("{}", message(&e)));
        let written = to_bytes(&model).unwrap();
        assert!(ModelProto::decode(&written[..]).unwrap() == proto, "{model:#?}");
        // prost writes the members of a `oneof` out of order; otherwise its bytes are those of every library.
        assert_eq!(written.len(), proto.encoded_len());
    }
    assert_eq!(to_bytes(&read(&add()).unwrap()).unwrap(), add().encode_to_vec());
}

#[test]
fn what_is_read_is_what_the_file_says() {
    let model = read(&everything()).unwrap();
    let graph = &model.graph;
    assert_eq!(model.opset(""), Some(17));
    let names: Vec<_> = graph.inputs.iter().map(|&id| graph.value_name(id)).collect();
    assert_eq!(names, ["X", "cond", "W"]);
    let w = graph.find("W").unwrap();
    assert_eq!(graph.value(w).constant.as_ref().unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0]);
    assert!(graph.constant(w).is_none(), "W is an input too, so it is only a default");
    let y0 = graph.value(graph.find("y0").unwrap()).ty.as_ref().unwrap();
    assert_eq!(y0.dims().unwrap(), [Dim::Symbol("batch".to_owned()), Dim::Unknown]);
    let sparse = graph.value(graph.find("S").unwrap());
    assert_eq!(sparse.ty.as_ref().unwrap().known_dims(), Some(vec![2]));
    let node = &graph.nodes[3];
    assert_eq!(
        node.inputs.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, true, true, false]
    );
    assert_eq!(node.int("int"), Some(i64::MIN));
    assert!(
        matches!(node.attr("type"), Some(AttrValue::Type(t)) if t.elem() == Some(DataType::Float))
    );
    let AttrValue::Graph(then_branch) = graph.nodes[2].attr("then_branch").unwrap() else {
        panic!()
    };
    let mut captured = Vec::new();
    then_branch.captures(&mut captured);
    assert_eq!(captured, ["y0"]);
    let body = &model.functions[0].body;
    assert!(
        matches!(&body.nodes[0].attrs[0].value, AttrValue::Ref { name, ty: 1 } if name == "alpha")
    );
    let kinds: Vec<_> =
        graph.value_info.iter().map(|&id| &graph.value(id).ty.as_ref().unwrap().kind).collect();
    assert!(matches!(
        kinds[1..],
        [
            TypeKind::Sequence(_),
            TypeKind::Map { .. },
            TypeKind::Optional(_),
            TypeKind::SparseTensor { .. },
            TypeKind::Opaque { .. }
        ]
    ));
}

#[test]
fn weights_are_not_copied() {
    let bytes = Bytes::from(add().encode_to_vec());
    let model = from_bytes(bytes.clone(), None).unwrap();
    let weight = model.graph.constant(model.graph.find("W").unwrap()).unwrap();
    assert!(bytes.as_ptr_range().contains(&weight.as_bytes().as_ptr()), "a slice of the file");
}

#[test]
fn every_way_to_store_elements_gives_the_bytes_of_raw_data() {
    use DataType::*;
    let ints: Vec<i32> = vec![0, 1, -1, 255, 77];
    for dtype in DataType::ALL {
        let mut proto = TensorProto {
            data_type: Some(dtype.to_onnx()),
            dims: vec![5],
            name: text("t"),
            ..Default::default()
        };
        let expected: Vec<u8> = match dtype {
            Float => {
                proto.float_data = vec![1.0, -0.0, f32::NAN, f32::MAX, 1e-45];
                proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Complex64 => {
                proto.float_data = (0..10).map(|i| i as f32).collect();
                proto.float_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Double => {
                proto.double_data = vec![1.0, -0.0, f64::NAN, f64::MAX, 5e-324];
                proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Complex128 => {
                proto.double_data = (0..10).map(f64::from).collect();
                proto.double_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Int64 => {
                proto.int64_data = vec![0, 1, -1, i64::MIN, i64::MAX];
                proto.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Uint64 => {
                proto.uint64_data = vec![0, 1, 2, 3, u64::MAX];
                proto.uint64_data.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            Uint32 => {
                proto.uint64_data = vec![0, 1, 2, 3, u64::from(u32::MAX)];
                proto.uint64_data.iter().flat_map(|&x| (x as u32).to_le_bytes()).collect()
            }
            Int32 => {
                proto.int32_data = ints.clone();
                ints.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            String => {
                proto.string_data = vec![Bytes::from_static(b"\xff"); 5];
                Vec::new()
            }
            Bool => {
                proto.int32_data = vec![0, 1, 0, 1, 2];
                vec![0, 1, 0, 1, 1]
            }
            Uint16 | Int16 | Float16 | Bfloat16 => {
                proto.int32_data = vec![0, 1, -1, 65535, 0x1234];
                vec![0, 0, 1, 0, 255, 255, 255, 255, 0x34, 0x12]
            }
            Uint4 | Int4 | Float4E2M1 => {
                proto.int32_data = vec![0x21, 0xf3, 0x05];
                vec![0x21, 0xf3, 0x05]
            }
            Uint2 | Int2 => {
                proto.int32_data = vec![0b1110_0100, 0b01];
                vec![0b1110_0100, 0b01]
            }
            // x0 | x1 << 6 | x2 << 12 | x3 << 18, then x4 alone.
            Float6E2M3 | Float6E3M2 => {
                proto.int32_data = vec![0b00_0001, 0b10_0000, 0b11_1111, 0b01_0101, 0b11_0000];
                vec![0b0000_0001, 0b1111_1000, 0b0101_0111, 0b0011_0000]
            }
            _ => {
                proto.int32_data = ints.clone();
                ints.iter().map(|&x| x as u8).collect()
            }
        };
        let tensor = tensor_from_bytes(proto.encode_to_vec().into())
            .unwrap_or_else(|e| panic!("{}", message(&e)));
        assert_eq!((tensor.dtype(), tensor.dims()), (dtype, &[5][..]));
        assert_eq!(tensor.as_bytes(), expected, "{dtype}");
        assert_eq!(tensor.notes().unwrap().name, "t");
        let again = tensor_from_bytes(tensor_to_bytes(&tensor).into()).unwrap();
        assert_eq!(again, tensor, "{dtype}");

        // One entry fewer, or none, does not make up for the shape.
        proto.int32_data.pop();
        proto.float_data.pop();
        proto.double_data.pop();
        proto.int64_data.pop();
        proto.uint64_data.pop();
        proto.string_data.pop();
        let error = message(&tensor_from_bytes(proto.encode_to_vec().into()).unwrap_err());
        assert!(error.starts_with("the model: tensor `t`: `"), "{dtype}: {error}");
    }
}

#[test]
fn nodes_out_of_order_are_sorted_and_cycles_refused() {
    let mut proto = add();
    let graph = proto.graph.as_mut().unwrap();
    let mut inner = op("If", &["X"], &["b"]);
    inner.attribute.push(AttributeProto {
        g: Some(Box::new(GraphProto {
            node: vec![op("Relu", &["a"], &["t"])],
            ..Default::default()
        })),
        ..attribute("then_branch", 5)
    });
    graph.node =
        vec![op("C", &["b"], &["Y"]), inner, op("D", &["X"], &["d"]), op("A", &["X"], &["a"])];
    let order = |proto: &ModelProto| {
        let model = read(proto).unwrap();
        model.graph.nodes.iter().map(|n| n.op_type.clone()).collect::<Vec<_>>()
    };
    // The body of `If` waits for `a` as `If` itself does.
    assert_eq!(order(&proto), ["D", "A", "If", "C"]);

    proto.graph.as_mut().unwrap().node[3].input[0] = "b".to_owned();
    assert_eq!(
        refusal(&proto),
        "the model: node `Y` is part of a cycle, or behind one: 3 nodes cannot be put in order"
    );
}

/// Every kind of broken file, and what is said about it. `testdata/hostile` has the files.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let with = |change: &dyn Fn(&mut ModelProto)| {
        let mut proto = add();
        change(&mut proto);
        proto.encode_to_vec()
    };
    let graph = |change: &dyn Fn(&mut GraphProto)| with(&|m| change(m.graph.as_mut().unwrap()));
    let weight = |change: &dyn Fn(&mut TensorProto)| graph(&|g| change(&mut g.initializer[0]));
    let external = |entries: &[(&str, &str)]| {
        weight(&|t| {
            t.raw_data = None;
            t.data_location = Some(1);
            t.external_data = entries.iter().map(|(k, v)| entry(k, v)).collect();
        })
    };
    let good = add().encode_to_vec();
    let nested = |n: usize| {
        // Each level is a graph in an attribute of a node of the graph around it.
        let mut inner = GraphProto::default().encode_to_vec();
        for _ in 0..n {
            let field = |key: u8, content: &[u8]| {
                let mut out = vec![key];
                prost::encode_length_delimiter(content.len(), &mut out).unwrap();
                out.extend_from_slice(content);
                out
            };
            inner = field(0x0a, &field(0x2a, &field(0x32, &inner)));
        }
        let mut out = vec![0x08, 0x08, 0x3a];
        prost::encode_length_delimiter(inner.len(), &mut out).unwrap();
        out.extend(inner);
        out
    };
    let many_empty_nodes = {
        let n = 2_000_000_u32;
        let mut out = vec![0x08, 0x08, 0x3a];
        prost::encode_length_delimiter(2 * n as usize, &mut out).unwrap();
        out.extend([0x0a, 0x00].repeat(n as usize));
        out
    };
    vec![
        ("empty", Vec::new(), "is not an ONNX model: it is empty"),
        ("zip", b"PK\x03\x04 and so on".to_vec(), "looks like a ZIP archive"),
        (
            "text",
            b"hello world, this is no model".to_vec(),
            "is not an ONNX model: it is not a protobuf file",
        ),
        (
            "tensor_file",
            floats("t", &[2], &[1.0, 2.0]).encode_to_vec(),
            "in `the outermost message`",
        ),
        (
            "truncated_half",
            good[..good.len() / 2].to_vec(),
            "is cut off: `graph` needs 72 bytes, and 34 are left",
        ),
        (
            "truncated_last_byte",
            good[..good.len() - 1].to_vec(),
            "is cut off: `opset_import[0]` needs 4 bytes",
        ),
        ("no_graph", with(&|m| m.graph = None), "is not an ONNX model: it has no graph"),
        (
            "no_ir_version",
            with(&|m| m.ir_version = None),
            "has IR version 0; versions 1 to 14 are known",
        ),
        (
            "newer_ir_version",
            with(&|m| m.ir_version = Some(15)),
            "has IR version 15; versions 1 to 14",
        ),
        ("negative_ir_version", with(&|m| m.ir_version = Some(-1)), "has IR version -1"),
        ("no_opset", with(&|m| m.opset_import.clear()), "imports no operator set"),
        (
            "unknown_field",
            {
                let mut bytes = good.clone();
                bytes.extend([0xfa, 0x07, 0x01, b'x']);
                bytes
            },
            "`the outermost message` has field 127, which ModelProto does not define up to IR version 14",
        ),
        (
            "not_utf8",
            graph(&|g| g.initializer[0].name = text("W")).tap_replace(b"W", b"\xff"),
            "is not UTF-8",
        ),
        ("deep_nesting", nested(40), "is refused: its messages nest deeper than 96 levels"),
        ("many_empty_nodes", many_empty_nodes, "would take more than"),
        ("negative_dim", weight(&|t| t.dims = vec![-2]), "tensor `W`: size -2 is not possible"),
        (
            "overflowing_dims",
            weight(&|t| t.dims = vec![1 << 62, 1 << 62]),
            "more elements than can be addressed",
        ),
        (
            "overflowing_bytes",
            weight(&|t| t.dims = vec![1 << 62]),
            "more elements than can be addressed",
        ),
        (
            "huge_dims",
            weight(&|t| t.dims = vec![1 << 40]),
            "float[1099511627776] needs 4398046511104 bytes of data",
        ),
        (
            "short_data",
            weight(&|t| t.dims = vec![3]),
            "tensor `W`: float[3] needs 12 bytes of data, not 8",
        ),
        ("no_data", weight(&|t| t.raw_data = None), "tensor `W`: it has 2 elements and no data"),
        (
            "unknown_data_type",
            weight(&|t| t.data_type = Some(99)),
            "tensor `W`: element type 99 is not known",
        ),
        (
            "no_data_type",
            weight(&|t| t.data_type = None),
            "tensor `W`: element type 0 is not known",
        ),
        (
            "segment",
            weight(&|t| t.segment = Some(Segment { begin: Some(0), end: Some(1) })),
            "tensor `W`: tensors in segments are not supported",
        ),
        (
            "external_absolute",
            external(&[("location", "/etc/passwd")]),
            "must be a path inside the model's folder",
        ),
        (
            "external_parent",
            external(&[("location", "../x.data")]),
            "must be a path inside the model's folder",
        ),
        (
            "external_hidden_parent",
            external(&[("location", "a/../../x.data")]),
            "external data `a/../../x.data`: it must be a path inside the model's folder",
        ),
        ("external_nowhere", external(&[]), "must be a path inside the model's folder"),
        (
            "external_missing",
            external(&[("location", "missing.data")]),
            "`missing.data` cannot be opened",
        ),
        ("external_folder", external(&[("location", ".")]), "it is not a regular file"),
        (
            "external_offset",
            external(&[("location", "empty.onnx"), ("offset", "18446744073709551615")]),
            "the tensor lies at byte 18446744073709551615 and needs 8 bytes, and the file has 0",
        ),
        (
            "external_bad_offset",
            external(&[("location", "empty.onnx"), ("offset", "-1")]),
            "offset `-1` is not a number",
        ),
        (
            "external_length",
            external(&[("location", "empty.onnx"), ("length", "4")]),
            "it gives the tensor 4 bytes, which needs 8",
        ),
        (
            "external_in_sparse",
            graph(&|g| {
                let values = TensorProto { data_location: Some(1), ..floats("S", &[1], &[1.0]) };
                let sparse = SparseTensorProto { values: Some(values), ..Default::default() };
                g.sparse_initializer.push(sparse.encode_to_vec().into());
            }),
            "external data of a sparse tensor or of training information is not supported",
        ),
        (
            "negative_dim_in_type",
            graph(&|g| g.input[0] = info("X", &[-3])),
            "value `X`: size -3 is not possible",
        ),
        (
            "default_of_other_type",
            graph(&|g| g.input.push(info("W", &[3]))),
            "value `W`: its default is float[2], and its declared type float[3]",
        ),
        (
            "unknown_type",
            graph(&|g| {
                let tensor = type_proto::Tensor { elem_type: Some(77), shape: None };
                let value = Some(type_proto::Value::TensorType(tensor));
                g.input[0].r#type = Some(TypeProto { value, denotation: None });
            }),
            "value `X`: element type 77 is not known",
        ),
        ("unnamed_input", graph(&|g| g.input[0].name = None), "a graph's input has no name"),
        (
            "unnamed_initializer",
            graph(&|g| g.initializer[0].name = text("")),
            "an initializer has no name",
        ),
        (
            "initializer_twice",
            graph(&|g| g.initializer.push(floats("W", &[0], &[]))),
            "value `W` is defined twice, the second time as an initializer",
        ),
        (
            "input_twice",
            graph(&|g| g.input.push(info("X", &[2]))),
            "value `X` is defined twice, the second time as an input",
        ),
        (
            "output_twice",
            graph(&|g| g.node.push(op("Relu", &["X"], &["Y"]))),
            "value `Y` is defined twice, the second time by node `Y`",
        ),
        (
            "undefined_input",
            graph(&|g| g.node[0].input[1] = "nothing".to_owned()),
            "node `Y` uses `nothing`, which is not defined",
        ),
        (
            "undefined_output",
            graph(&|g| g.output[0].name = text("nothing")),
            "the graph's list of outputs uses `nothing`, which is not defined",
        ),
        (
            "self_cycle",
            graph(&|g| g.node[0].input[0] = "Y".to_owned()),
            "node `Y` is part of a cycle",
        ),
        (
            "no_op_type",
            graph(&|g| g.node[0].op_type = None),
            "node `Y` (): it has no operator type",
        ),
        (
            "unknown_attribute_type",
            graph(&|g| g.node[0].attribute.push(attribute("a", 55))),
            "node `Y` (Add): attribute `a` is of type 55, which is not known",
        ),
        (
            "attribute_without_value",
            graph(&|g| g.node[0].attribute.push(attribute("a", 0))),
            "node `Y` (Add): attribute `a` has no value",
        ),
        (
            "attribute_without_tensor",
            graph(&|g| g.node[0].attribute.push(attribute("a", 4))),
            "node `Y` (Add): attribute `a` has no tensor",
        ),
        (
            "bad_tensor_in_attribute",
            graph(&|g| {
                let t = TensorProto { data_type: Some(1), dims: vec![-1], ..Default::default() };
                g.node[0]
                    .attribute
                    .push(AttributeProto { t: Some(Box::new(t)), ..attribute("value", 4) });
            }),
            "tensor `Y.value`: size -1 is not possible",
        ),
    ]
}

/// Replaces a byte string where it stands for the name in `initializer`.
trait TapReplace {
    fn tap_replace(self, from: &[u8], to: &[u8]) -> Self;
}

impl TapReplace for Vec<u8> {
    fn tap_replace(mut self, from: &[u8], to: &[u8]) -> Self {
        let at = self.windows(from.len()).position(|w| w == from).expect("it is there");
        self[at..at + from.len()].copy_from_slice(to);
        self
    }
}

#[test]
fn hostile_files_are_refused_by_name_within_a_second() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/hostile");
    let remake = std::env::var_os("MIDTREAD_REMAKE").is_some();
    for (name, bytes, expected) in hostile() {
        let path = folder.join(format!("{name}.onnx"));
        // What is too large for the repository is only made here.
        if bytes.len() < 10_000 {
            if remake {
                fs::write(&path, &bytes).unwrap();
            }
            let stored = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(stored, bytes, "{name}: run this test with MIDTREAD_REMAKE=1");
        } else {
            assert!(!path.exists());
        }

        let start = Instant::now();
        let bytes = Bytes::from(bytes);
        let error = from_bytes(bytes.clone(), Some(&folder))
            .err()
            .unwrap_or_else(|| panic!("{name} was read"));
        assert!(start.elapsed().as_secs_f64() < 1.0, "{name} took {:?}", start.elapsed());
        let text = message(&error);
        assert!(text.contains(expected), "{name}: {text}");
        if path.exists() {
            let error = load(&path).unwrap_err();
            assert_eq!(error.path(), Some(path.as_path()));
            assert!(error.to_string().contains(&format!("{name}.onnx")), "{error}");
        }
    }
    let n_files = fs::read_dir(&folder)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "onnx"));
    let n_small = hostile().iter().filter(|(_, bytes, _)| bytes.len() < 10_000).count();
    assert_eq!(n_files.count(), n_small, "a file in testdata/hostile is not in the list");
}

#[test]
fn files_that_are_no_files_are_refused_and_hints_given() {
    let folder = tempfile::tempdir().unwrap();
    let missing = load(folder.path().join("missing.onnx")).unwrap_err();
    assert!(missing.to_string().ends_with("missing.onnx` cannot be opened"), "{missing}");
    assert_eq!(missing.hint(), Some("check the path; folders are not made"));
    assert!(message(&load(folder.path()).unwrap_err()).ends_with("is not a regular file"));
    assert!(matches!(load("/dev/null").unwrap_err().problem(), Problem::NotAFile));
}

#[cfg(unix)]
#[test]
fn external_data_may_be_reached_by_links_only_inside_the_models_folder() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("model")).unwrap();
    fs::create_dir(path("cache")).unwrap();
    fs::write(path("model/w.data"), [0; 8]).unwrap();
    fs::write(path("outside.data"), [0; 8]).unwrap();
    symlink(path("outside.data"), path("model/leaves.data")).unwrap();
    symlink("w.data", path("model/stays.data")).unwrap();
    let model = |location: &str| {
        let mut proto = add();
        let weight = &mut proto.graph.as_mut().unwrap().initializer[0];
        weight.raw_data = None;
        weight.data_location = Some(1);
        weight.external_data = vec![entry("location", location)];
        proto.encode_to_vec()
    };
    for (location, expected) in [
        ("w.data", None),
        ("./w.data", None),
        ("stays.data", None),
        (
            "leaves.data",
            Some("external data `leaves.data`: it is a link that leaves the model's folder"),
        ),
    ] {
        fs::write(path("model/m.onnx"), model(location)).unwrap();
        let result = load(path("model/m.onnx"));
        match expected {
            None => drop(result.unwrap()),
            Some(expected) => assert!(message(&result.unwrap_err()).ends_with(expected)),
        }
    }
    // As in download caches: links to a folder where model and data lie side by side.
    fs::write(path("model/blob"), model("x.data")).unwrap();
    symlink(path("model/blob"), path("cache/m.onnx")).unwrap();
    symlink(path("model/w.data"), path("cache/x.data")).unwrap();
    load(path("cache/m.onnx")).unwrap();
}

#[test]
fn saving_gives_the_same_bytes_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let model = read(&everything()).unwrap();
    let expected = to_bytes(&model).unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for _ in 0..2 {
        let report = save(&model, &path, &SaveOptions::default()).unwrap();
        assert!(fs::read(&path).unwrap() == expected);
        assert_eq!((report.n_bytes, report.external_data), (expected.len() as u64, None));
        assert_eq!(names(), ["m.onnx"]);
    }

    let options = SaveOptions { external_data: ExternalData::Always { min_bytes: 8 } };
    let report = save(&model, &path, &options).unwrap();
    assert_eq!(names(), ["m.onnx", "m.onnx.data"]);
    let (data_path, n_data) = report.external_data.unwrap();
    assert_eq!(fs::metadata(&data_path).unwrap().len(), n_data);
    // `W` and the tensor in the Constant node, each on a page of its own.
    assert_eq!(n_data, 4096 + 8);
    let again = load(&path).unwrap();
    assert!(to_bytes(&again).unwrap() == expected);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let fresh = folder.path().join("fresh");
        fs::write(&fresh, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&fresh), "the permissions of any new file");
    }
}

#[test]
fn a_model_can_be_saved_over_the_files_it_lies_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let n = 100_000;
    let mut proto = add();
    let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
    proto.graph.as_mut().unwrap().initializer[0] = floats("W", &[n], &values);
    fs::write(&path, proto.encode_to_vec()).unwrap();

    for external_data in [
        ExternalData::Always { min_bytes: 1 },
        ExternalData::Always { min_bytes: 1 },
        ExternalData::Never,
    ] {
        let mut model = load(&path).unwrap();
        // Everything moves, so that writing in place would be seen.
        model.graph.name.push_str(&"x".repeat(5000));
        model.graph.add_constant("first", Tensor::vector(&vec![9_u8; 70_000]));
        model.graph.initializers.rotate_right(1);
        save(&model, &path, &SaveOptions { external_data }).unwrap();
        let before = model.graph.value(model.graph.find("W").unwrap()).constant.clone().unwrap();
        assert_eq!(before.to_vec::<f32>().unwrap(), values, "the old mapping is as it was");
        let again = load(&path).unwrap();
        let after = again.graph.value(again.graph.find("W").unwrap()).constant.clone().unwrap();
        assert_eq!(after, before);
    }
}

#[test]
fn a_failed_save_names_the_path_and_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let model = read(&add()).unwrap();
    let options = SaveOptions { external_data: ExternalData::Always { min_bytes: 1 } };

    let error = save(&model, folder.path().join("no/such/m.onnx"), &options).unwrap_err();
    assert!(error.to_string().contains("no/such/m.onnx"), "{error}");
    assert_eq!(error.hint(), Some("check the path; folders are not made"));

    let taken = folder.path().join("folder.onnx");
    fs::create_dir(&taken).unwrap();
    assert!(matches!(save(&model, &taken, &options).unwrap_err().problem(), Problem::NotAFile));
    assert!(matches!(
        save(&model, "/dev/null", &SaveOptions::default()).unwrap_err().problem(),
        Problem::NotAFile
    ));
    // The data's place is taken: the model must not be written without it.
    fs::create_dir(folder.path().join("m.onnx.data")).unwrap();
    let error = save(&model, folder.path().join("m.onnx"), &options).unwrap_err();
    assert!(error.to_string().contains("m.onnx.data` is not a regular file"), "{error}");
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["folder.onnx", "m.onnx.data"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_nothing_is_left() {
    // Every write to it fails with "no space left on device".
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let model = read(&add()).unwrap();
    let mut out = std::io::BufWriter::with_capacity(1, full);
    let layout = crate::encode::Measure::model(&model, None);
    let error = layout.write(&model, &mut out).unwrap_err();
    let error =
        Error::in_file(Path::new("m.onnx"), Problem::Io { doing: "written", source: error });
    assert_eq!(error.hint(), Some("free some space, or write to another disk"));
    assert!(
        message(&error).starts_with("`m.onnx` cannot be written: No space left"),
        "{}",
        message(&error)
    );
}

#[test]
fn a_model_above_the_limit_goes_to_external_data_by_itself() {
    let mut model = read(&add()).unwrap();
    // 2.5 GB of zeros that the system never hands out pages for, shared by five names.
    let zeros = Tensor::zeros(DataType::Uint8, vec![500_000_000]).unwrap();
    for i in 0..5 {
        model.graph.add_constant(&format!("large_{i}"), zeros.clone());
    }
    let error = to_bytes(&model).unwrap_err();
    assert!(
        matches!(error.problem(), Problem::TooLargeForProtobuf { n_bytes: 2_500_000_000.., .. }),
        "{error}"
    );
    let layout = crate::encode::Measure::model(&model, None);
    assert!(2_500_000_000 < layout.n_bytes);
    let external = crate::encode::External { location: "x".to_owned(), min_bytes: 1024 };
    let layout = crate::encode::Measure::model(&model, Some(external));
    assert!(layout.n_bytes < 1000, "{}", layout.n_bytes);
    let offsets: Vec<_> = layout.tensors.iter().map(|(offset, _)| *offset).collect();
    assert!(offsets.iter().all(|offset| offset % 65_536 == 0), "{offsets:?}");
    assert_eq!(offsets.len(), 5, "the small one stays");
}

#[test]
fn a_panic_while_writing_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    let result = std::panic::catch_unwind(|| {
        crate::save::Partial::write(&path, |out| {
            std::io::Write::write_all(out, b"half").unwrap();
            panic!("in the middle");
        })
        .map(drop)
    });
    assert!(result.is_err());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the bytes: a model or an error; and a model that was read can be written and read again.
    #[test]
    fn no_bytes_make_it_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        small in any::<bool>(),
    ) {
        let mut bytes = if small { add() } else { everything() }.encode_to_vec();
        for (at, value) in flips {
            let n = bytes.len();
            bytes[at.index(n)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(model) = from_bytes(bytes.into(), None) {
            let written = to_bytes(&model).unwrap();
            let again = from_bytes(written.clone().into(), None);
            let again = again.unwrap_or_else(|e| panic!("{}", message(&e)));
            prop_assert_eq!(to_bytes(&again).unwrap(), written);
        }
    }

    #[test]
    fn no_random_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let with_version = [&[0x08, 0x08][..], &bytes].concat();
        for bytes in [bytes, with_version] {
            let _ = from_bytes(bytes.clone().into(), None);
            let _ = tensor_from_bytes(bytes.into());
        }
    }
}
