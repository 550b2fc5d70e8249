//! Weights in blocks, multiplied by ONNX Runtime's own operators, against their definition in `num`.

use std::num::NonZero;

use midtread::{
    Runner, Runtime,
    graph::{AttrValue, DataType, Dim, Model, Node, Tensor, Type},
    num::formats::{Format, Matrix},
    onnx::{self, SaveOptions},
    quant::blocks::{self, BlockDecision, BlockOptions, BlockType, ScaleSearch},
};
use midtread_testkit::{npz, oracle};

/// Repeatable values between -1 and 1, with a few large ones.
fn values(n: usize, seed: usize) -> Vec<f32> {
    let wave = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    (0..n).map(|i| wave(i) * if i % 97 == 0 { 3.0 } else { 1.0 }).collect()
}

const K: usize = 80;
const N: usize = 12;

/// `y = x w; z = x wt' + b; e = table[ids]`. 80 is not whole blocks of 32; the table's rows of 64 are.
fn model() -> Model {
    let mut model = Model { ir_version: 8, ..Model::default() };
    model.set_opset("", 17);
    let g = &mut model.graph;
    g.name = "blocks".to_owned();
    let [x, ids, w, wt, b, table, y, z, e] =
        ["x", "ids", "w", "wt", "b", "table", "y", "z", "e"].map(|n| g.intern(n));
    let tensor = |dims: &[usize], seed| {
        Tensor::from_slice(dims.to_vec(), &values(dims.iter().product(), seed)).unwrap()
    };
    g.set_constant(w, tensor(&[K, N], 1));
    g.set_constant(wt, tensor(&[N, K], 2));
    g.set_constant(b, tensor(&[N], 3));
    g.set_constant(table, tensor(&[32, 64], 4));
    let ty = |dtype, dims: &[usize]| {
        Some(Type::tensor(dtype, Some(dims.iter().map(|&d| Dim::Known(d)).collect())))
    };
    g.value_mut(x).ty = ty(DataType::Float, &[5, K]);
    g.value_mut(ids).ty = ty(DataType::Int64, &[4]);
    g.value_mut(y).ty = ty(DataType::Float, &[5, N]);
    g.value_mut(z).ty = ty(DataType::Float, &[5, N]);
    g.value_mut(e).ty = ty(DataType::Float, &[4, 64]);
    g.inputs = vec![x, ids];
    g.outputs = vec![y, z, e];
    g.nodes = vec![
        Node::new("MatMul", "product", [x, w], [y]),
        Node::new("Gemm", "gemm", [x, wt, b], [z]).with_attr("transB", AttrValue::Int(1)),
        Node::new("Gather", "lookup", [table, ids], [e]),
    ];
    model
}

fn inputs() -> Vec<(String, Tensor)> {
    vec![
        ("x".to_owned(), Tensor::from_slice(vec![5, K], &values(5 * K, 9)).unwrap()),
        ("ids".to_owned(), Tensor::vector(&[3_i64, 0, 31, -1])),
    ]
}

fn options(block_type: BlockType, block_size: usize, search: ScaleSearch) -> BlockOptions {
    BlockOptions {
        block_type,
        block_size: NonZero::new(block_size).unwrap(),
        search,
        accuracy_level: 1,
        include: Vec::new(),
        exclude: Vec::new(),
    }
}

/// The float model on weights that are what the format makes of them.
fn rounded(format: &str, search: ScaleSearch, with_table: bool) -> Model {
    let mut format = Format::named(format).unwrap();
    if search == ScaleSearch::Mse {
        format.settings.search = midtread::num::formats::Search::Mse;
    }
    let mut model = model();
    let g = &mut model.graph;
    for (name, is_transposed) in [("w", false), ("wt", true), ("table", true)] {
        if name == "table" && !with_table {
            continue;
        }
        let id = g.find(name).unwrap();
        let tensor = g.constant(id).unwrap().clone();
        let [rows, cols] = tensor.dims()[..] else { panic!("a matrix") };
        let x = tensor.to_vec::<f32>().unwrap();
        let turn = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
        };
        let back = if is_transposed {
            format.round_trip(&Matrix::new(&x, cols).unwrap()).unwrap()
        } else {
            let back = format.round_trip(&Matrix::new(&turn(&x, rows, cols), rows).unwrap());
            turn(&back.unwrap(), cols, rows)
        };
        g.set_constant(id, Tensor::from_slice(vec![rows, cols], &back).unwrap());
    }
    model
}

fn here(model: &Model) -> Vec<(String, Tensor)> {
    Runner::new(model, Runtime::Interpreter, None).unwrap().run(inputs()).unwrap()
}

fn there(model: &Model) -> Vec<(String, Tensor)> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    onnx::save(model, path("model.onnx"), &SaveOptions::default()).unwrap();
    npz::write(path("in.npz").as_ref(), &inputs());
    oracle(&[
        "run",
        &path("model.onnx"),
        "--inputs",
        &path("in.npz"),
        "--outputs",
        &path("out.npz"),
    ]);
    npz::read(path("out.npz").as_ref())
}

#[test]
fn every_form_computes_what_its_definition_says_here_and_in_onnxruntime() {
    let bits = |n_bits, is_asymmetric| BlockType::Bits { n_bits, is_asymmetric };
    let mut cases = vec![
        (BlockType::Nf4, 64, ScaleSearch::MaxAbs, "matmul_bnb4_nf4:64"),
        (BlockType::Nf4, 16, ScaleSearch::MaxAbs, "matmul_bnb4_nf4:16"),
        (BlockType::Fp4, 32, ScaleSearch::MaxAbs, "matmul_bnb4_fp4:32"),
        (bits(4, true), 16, ScaleSearch::Hqq, "hqq4:16"),
        (bits(2, true), 32, ScaleSearch::Hqq, "hqq2:32"),
        (bits(4, false), 32, ScaleSearch::Mse, "matmul_nbits4:32"),
        (bits(2, true), 16, ScaleSearch::Mse, "matmul_nbits2_asymmetric:16"),
    ];
    for (n_bits, is_asymmetric, name) in [
        (2, false, "matmul_nbits2:32"),
        (2, true, "matmul_nbits2_asymmetric:32"),
        (4, false, "matmul_nbits4:32"),
        (4, true, "matmul_nbits4_asymmetric:32"),
        (8, false, "matmul_nbits8:32"),
        (8, true, "matmul_nbits8_asymmetric:32"),
    ] {
        cases.push((bits(n_bits, is_asymmetric), 32, ScaleSearch::MaxAbs, name));
    }
    for (block_type, block_size, search, format) in cases {
        let model = model();
        let plan = blocks::plan(&model, &options(block_type, block_size, search)).unwrap();
        let looked_up = plan.nodes[2].decision == BlockDecision::Lookup;
        let is_integer = matches!(block_type, BlockType::Bits { n_bits: 4 | 8, .. });
        assert_eq!(looked_up, is_integer && search != ScaleSearch::Hqq, "{format}: {plan:?}");
        let (quantized, written) = blocks::apply(&model, &plan).unwrap();
        assert_eq!(written.len(), if looked_up { 3 } else { 2 });
        assert!(quantized.graph.find("w").is_none_or(|id| quantized.graph.constant(id).is_none()));
        let want = here(&rounded(format, search, looked_up));
        for got in [here(&quantized), there(&quantized)] {
            for ((name, want), (_, got)) in want.iter().zip(&got) {
                assert_eq!(want.dims(), got.dims(), "{format} {name}");
                let (want, got) = (want.to_vec::<f32>().unwrap(), got.to_vec::<f32>().unwrap());
                for (want, got) in want.iter().zip(&got) {
                    // 80 products of at most 3 times 3.7, summed in another order: 80 roundings of at most 900.
                    let bound = if name == "e" { 1e-6 } else { 80.0 * 900.0 * f32::EPSILON / 2.0 };
                    assert!((want - got).abs() <= bound, "{format} {name}: {want} and {got}");
                }
            }
        }
    }
}

#[test]
fn a_search_loses_no_more_than_rounding_to_the_nearest() {
    let noise = |search, is_asymmetric| {
        let block_type = BlockType::Bits { n_bits: 4, is_asymmetric };
        let plan = blocks::plan(&model(), &options(block_type, 32, search)).unwrap();
        blocks::apply(&model(), &plan).unwrap().1.iter().map(|w| w.sqnr_db).fold(f64::MAX, f64::min)
    };
    assert!(noise(ScaleSearch::MaxAbs, false) < noise(ScaleSearch::Mse, false));
}

#[test]
fn what_does_not_fit_is_refused_or_kept_with_a_reason() {
    let bits = |n_bits| BlockType::Bits { n_bits, is_asymmetric: false };
    for (options, message) in [
        (options(bits(4), 24, ScaleSearch::MaxAbs), "powers of two from 16 on"),
        (options(bits(4), 8, ScaleSearch::MaxAbs), "powers of two from 16 on"),
        (options(bits(3), 32, ScaleSearch::MaxAbs), "MatMulNBits has 2, 4 and 8"),
        (options(bits(4), 32, ScaleSearch::Hqq), "hqq searches zero points"),
        (
            options(BlockType::Bits { n_bits: 8, is_asymmetric: true }, 32, ScaleSearch::Hqq),
            "does not take with 8 bits",
        ),
        (options(BlockType::Nf4, 64, ScaleSearch::Mse), "nothing to search"),
    ] {
        let err = blocks::plan(&model(), &options).unwrap_err().to_string();
        assert!(err.contains(message), "{err}");
    }
    // Rows of 64 are not whole blocks of 128.
    let plan = blocks::plan(&model(), &options(bits(4), 128, ScaleSearch::MaxAbs)).unwrap();
    assert_eq!(
        plan.nodes[2].decision,
        BlockDecision::Float("its rows are not whole blocks".into())
    );
    let mut other = model();
    other.graph.nodes[0].name = "another".into();
    assert!(blocks::apply(&other, &plan).is_err());
    let mut bad = model();
    let w = bad.graph.find("w").unwrap();
    bad.graph.set_constant(w, Tensor::from_slice(vec![K, N], &vec![f32::NAN; K * N]).unwrap());
    let err = blocks::plan(&bad, &options(bits(4), 32, ScaleSearch::MaxAbs)).unwrap_err();
    assert!(err.to_string().contains("constant `w` has NaN"), "{err}");
}
