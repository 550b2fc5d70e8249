//! Every format through files and back, in pieces and on several threads; and files that are not what they should be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use midtread_num::formats::{FORMATS, Format, FormatError, Matrix};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::convert::convert_pieces;
use crate::gguf::{KeyValue, Value};
use crate::tensor::{Spec, rows};
use crate::*;

/// Values like weights, one stream a seed.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed * 2 + 1;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.1 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// A tensor to write: name, sizes, values.
type Given<'a> = (&'a str, &'a [u64], &'a [f32]);

fn bytes_of(values: &[f32], dtype: &str) -> Vec<u8> {
    match dtype {
        "float32" => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        "bfloat16" => {
            values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        _ => values
            .iter()
            .flat_map(|x| midtread_num::formats::float::f16_bits(*x).to_le_bytes())
            .collect(),
    }
}

/// The bytes of a safetensors file.
fn safetensors_file(tensors: &[Given<'_>], dtype: &str) -> Vec<u8> {
    let ty = dtype::DType::named(dtype);
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|(name, dims, values)| Spec {
            name: (*name).into(),
            dims: dims.to_vec(),
            dtype: ty,
            n_bytes: (values.len() * ty.n_bytes) as u64,
        })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut bytes = safetensors::header(&specs.iter().collect::<Vec<_>>(), &metadata).unwrap();
    tensors.iter().for_each(|(_, _, values)| bytes.extend(bytes_of(values, dtype)));
    bytes
}

/// The bytes of a GGUF file.
fn gguf_file(keys: &[KeyValue], tensors: &[Given<'_>]) -> Vec<u8> {
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|(name, dims, values)| Spec {
            name: (*name).into(),
            dims: dims.to_vec(),
            dtype: dtype::DType::named("float32"),
            n_bytes: (4 * values.len()) as u64,
        })
        .collect();
    let (mut bytes, offsets, len) = gguf::header(keys, &specs.iter().collect::<Vec<_>>()).unwrap();
    bytes.resize(len as usize, 0);
    for ((_, _, values), offset) in tensors.iter().zip(offsets) {
        let values = bytes_of(values, "float32");
        bytes[offset as usize..][..values.len()].copy_from_slice(&values);
    }
    bytes
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

/// Converts everything in `from` that can be, in pieces of about 500 elements.
fn convert_all(from: &Path, weights: Weights, to: &Path) -> Result<Checkpoint, Error> {
    let container = Container::of_path(to).unwrap();
    let options = Options { convert: all(), ..Options::new(weights, container) };
    convert_with(from, &options, to, 1)
}

fn convert_with(
    from: &Path,
    options: &Options,
    to: &Path,
    n_threads: usize,
) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(from)?;
    let plan = plan(&checkpoint, options)?;
    let run = Run { n_threads, ..Run::ALONE };
    convert_pieces(&checkpoint, &plan, options, to, &run, 500)?;
    Checkpoint::open(to)
}

/// The values of a tensor after everything was made float32.
fn values(folder: &TempDir, from: &Path) -> BTreeMap<String, Vec<f32>> {
    let to = folder.path().join("values.safetensors");
    let checkpoint = convert_all(from, Weights::Float32, &to).unwrap();
    checkpoint
        .tensors
        .iter()
        .enumerate()
        .map(|(i, tensor)| {
            let mut bytes = vec![0; tensor.n_bytes as usize];
            checkpoint.read(i, 0, &mut bytes).unwrap();
            let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            (tensor.name.clone(), values)
        })
        .collect()
}

/// A name of each format: families with a small and a middling number, and with blocks where that is possible.
fn format_names() -> Vec<String> {
    let mut names = vec![];
    for def in FORMATS {
        for n in ["3", "8"] {
            let name = def.name.replace(['N', 'X'], n).replace('Y', "2");
            let Ok(format) = Format::named(&name) else { continue };
            names.push(name.clone());
            if format.def.sharing_is_free {
                names.push(format!("{name}:16"));
            }
            if Format::named(&format!("{name}:tensor")).is_ok() {
                names.push(format!("{name}:tensor"));
            }
        }
    }
    names.sort();
    names.dedup();
    names
}

/// Sizes that are hard: odd, empty, one value, a convolution, rows shorter than a block, more than one piece.
const SIZES: &[&[u64]] = &[
    &[0],
    &[1],
    &[7],
    &[3, 0],
    &[1, 1],
    &[40, 77],
    &[5, 512],
    &[6, 3, 3, 3],
    &[2, 3, 64],
    &[3, 1024],
];

#[test]
fn every_format_comes_back_from_a_file_as_num_has_it_whatever_the_pieces_and_threads() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, &[u64], Vec<f32>)> = SIZES
        .iter()
        .enumerate()
        .map(|(i, dims)| {
            (
                format!("t{i}.weight"),
                *dims,
                weights(dims.iter().product::<u64>() as usize, i as u64),
            )
        })
        .collect();
    let given: Vec<Given<'_>> =
        tensors.iter().map(|(name, dims, x)| (name.as_str(), *dims, x.as_slice())).collect();
    let from = write(&folder, "model.safetensors", &safetensors_file(&given, "float32"));
    for name in format_names() {
        let weights = Weights::named(&name).unwrap();
        let to = folder.path().join("out.safetensors");
        let options = Options {
            convert: all(),
            keys: Some(Keys::Plain),
            ..Options::new(weights, Container::Safetensors)
        };
        let checkpoint = convert_with(&from, &options, &to, 1).unwrap();
        let bytes = fs::read(&to).unwrap();
        convert_with(&from, &options, &to, 3).unwrap();
        assert!(bytes == fs::read(&to).unwrap(), "{name}: the same bytes with three threads");
        assert_eq!(checkpoint.metadata["format"], "pt");
        let back = values(&folder, &to);
        assert_eq!(back.len(), given.len());
        let format = Format::named(&name).unwrap();
        for (tensor, dims, x) in &given {
            let shape = rows(dims);
            let want = match format.round_trip(&Matrix::new(x, shape.cols).unwrap()) {
                Ok(want) => want,
                Err(FormatError::Blocks { .. }) => x.to_vec(),
                Err(error) => panic!("{name}, {tensor}: {error}"),
            };
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&back[*tensor]), bits(&want), "{name}, {tensor} of {dims:?}");
        }
    }
}

#[test]
fn float16_and_bfloat16_sources_are_what_their_values_are() {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(40 * 77, 3);
    for dtype in ["float16", "bfloat16"] {
        let from =
            write(&folder, "half.safetensors", &safetensors_file(&[("w", &[40, 77], &x)], dtype));
        let exact = values(&folder, &from)["w"].clone();
        assert_ne!(exact, x);
        let to = folder.path().join("out.safetensors");
        for name in ["int8", "nf4", "uint4:32"] {
            convert_all(&from, Weights::named(name).unwrap(), &to).unwrap();
            let want = Format::named(name).unwrap().round_trip(&Matrix::new(&exact, 77).unwrap());
            assert_eq!(values(&folder, &to)["w"], want.unwrap(), "{name} of {dtype}");
        }
        // A type to itself changes nothing.
        convert_all(&from, Weights::named(dtype).unwrap(), &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
    }
}

#[test]
fn gguf_keeps_keys_and_alignment_and_its_blocks_survive_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(4 * 512, 5);
    let keys = [
        KeyValue::string("general.architecture", "llama"),
        KeyValue::u32("general.alignment", 64),
        KeyValue::string("tokenizer.chat_template", "{{ messages }}\n"),
        KeyValue::u32("general.file_type", 0),
    ];
    let tensors: &[Given<'_>] = &[
        ("blk.0.ffn_up.weight", &[4, 512], &x),
        ("blk.0.attn_norm.weight", &[512], &x[..512]),
        ("blk.0.ffn_down.weight", &[16, 96], &x[..1536]),
    ];
    let from = write(&folder, "model.gguf", &gguf_file(&keys, tensors));
    let to = folder.path().join("out.gguf");
    let options = Options::new(Weights::named("q4_k").unwrap(), Container::Gguf);
    let checkpoint = convert_with(&from, &options, &to, 2).unwrap();
    assert_eq!(checkpoint.gguf, Some((3, 64)));
    let types: Vec<&str> = checkpoint.tensors.iter().map(|t| t.dtype.name).collect();
    // Rows of 96 are not whole blocks of 256; llama.cpp takes Q5_0 then.
    assert_eq!(types, ["q4_k", "float32", "q5_0"]);
    assert!(checkpoint.tensors.iter().all(|t| t.offset.is_multiple_of(64)));
    let value = |key: &str| checkpoint.keys.iter().find(|kv| kv.key == key).unwrap().value();
    assert_eq!(value("tokenizer.chat_template"), Value::String("{{ messages }}\n".into()));
    assert_eq!(value("general.file_type"), Value::Int(14));
    // Version 2 differs in nothing but the number.
    let mut old = fs::read(&to).unwrap();
    old[4] = 2;
    let old = write(&folder, "old.gguf", &old);
    assert_eq!(Checkpoint::open(&old).unwrap().gguf, Some((2, 64)));
    // To safetensors the blocks go as they are, and come back as they were.
    let stored = folder.path().join("stored.safetensors");
    let keep = Options {
        keep: all(),
        ..Options::new(Weights::named("int8").unwrap(), Container::Safetensors)
    };
    let kept = convert_with(&to, &keep, &stored, 2).unwrap();
    assert_eq!(kept.metadata["general.architecture"], "llama");
    assert_eq!(values(&folder, &stored), values(&folder, &to));
    let want = Format::named("q4_k").unwrap().round_trip(&Matrix::new(&x, 512).unwrap()).unwrap();
    assert_eq!(values(&folder, &to)["blk.0.ffn_up.weight"], want);
}

#[test]
fn shards_are_written_and_read_with_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(64 * 64, 9);
    let names: Vec<String> = (0..5).map(|i| format!("layers.{i}.weight")).collect();
    let tensors: Vec<Given<'_>> =
        names.iter().map(|name| (name.as_str(), &[64, 64][..], x.as_slice())).collect();
    let from = write(&folder, "model.safetensors", &safetensors_file(&tensors, "float32"));
    let to = folder.path().join("out.safetensors.index.json");
    for (weights, n_files) in [(Weights::Float32, 5), (Weights::named("int8").unwrap(), 2)] {
        let options = Options { shard_bytes: 17_000, ..Options::new(weights, Container::Sharded) };
        let checkpoint = convert_with(&from, &options, &to, 2).unwrap();
        assert_eq!(checkpoint.paths().count(), n_files);
        assert_eq!(checkpoint.entries.len(), 5, "shards say what their tensors are");
    }
    let one = folder.path().join("one.safetensors");
    convert_all(&to, Weights::named("bfloat16").unwrap(), &one).unwrap();
    assert_eq!(Checkpoint::open(&one).unwrap().tensors.len(), 5);
    // A shard that is gone is an error.
    fs::remove_file(folder.path().join("out-00002-of-00002.safetensors")).unwrap();
    let error = Checkpoint::open(&to).unwrap_err().to_string();
    assert!(error.contains("out-00002-of-00002.safetensors"), "{error}");
}

#[test]
fn importances_and_searched_scales_reach_the_formats() {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(8 * 512, 2);
    let importance: Vec<f32> = (0..512).map(|i| 0.1 + (i % 9) as f32).collect();
    let from =
        write(&folder, "model.safetensors", &safetensors_file(&[("w", &[8, 512], &x)], "float32"));
    let file = safetensors_file(&[("w", &[512], &importance)], "float32");
    let imatrix = write(&folder, "imatrix.safetensors", &file);
    let to = folder.path().join("out.safetensors");
    for name in ["q4_k", "q6_k", "int4:32", "iq4_nl"] {
        let mut options = Options::new(Weights::named(name).unwrap(), Container::Safetensors);
        options.importances = Some(Importances::open(&imatrix).unwrap());
        options.search = midtread_num::formats::Search::Mse;
        convert_with(&from, &options, &to, 1).unwrap();
        let mut format = Format::named(name).unwrap();
        format.settings.importance = Some(&importance);
        format.settings.search = options.search;
        let matrix = Matrix::new(&x, 512).unwrap();
        let want = format.round_trip(&matrix).unwrap();
        assert_eq!(values(&folder, &to)["w"], want, "{name}");
        assert_ne!(want, Format::named(name).unwrap().round_trip(&matrix).unwrap());
    }
    // llama.cpp's: sums and how many.
    let sums: Vec<f32> = importance.iter().map(|x| 4.0 * x).collect();
    let file = gguf_file(&[], &[("w.in_sum2", &[1, 512], &sums), ("w.counts", &[1, 1], &[4.0])]);
    let imatrix = Importances::open(&write(&folder, "imatrix.gguf", &file)).unwrap();
    assert_eq!(imatrix.get("w"), Some(importance.as_slice()));
}

#[test]
fn what_an_integer_cannot_hold_is_refused_by_name_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = weights(4096, 1);
        x[2345] = bad;
        let good = weights(4096, 2);
        let tensors: &[Given<'_>] =
            &[("a.weight", &[16, 256], &good), ("b.weight", &[16, 256], &x)];
        let file = safetensors_file(tensors, "float32");
        let from = write(&folder, "model.safetensors", &file);
        let to = folder.path().join("out.safetensors");
        for name in ["int8", "nf4", "nf4_nested", "llm_int8", "q4_0", "q8_0", "q4_k", "int4:tensor"]
        {
            let error = convert_all(&from, Weights::named(name).unwrap(), &to).unwrap_err();
            let Error::Tensor { tensor, source } = &error else { panic!("{name}: {error}") };
            assert_eq!(tensor, "b.weight");
            assert!(matches!(source, FormatError::NotFinite { at: 2345, .. }), "{name}: {source}");
            assert!(error.hint().unwrap().contains("--keep"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the source is there");
        convert_all(&from, Weights::named("bfloat16").unwrap(), &to).unwrap();
        let back = values(&folder, &to)["b.weight"][2345];
        assert!(back == bad || back.is_nan() && bad.is_nan());
        fs::remove_file(folder.path().join("values.safetensors")).unwrap();
        fs::remove_file(&to).unwrap();
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = safetensors_file(&[("w", &[64, 64], &weights(4096, 2))], "float32");
    let from = write(&folder, "model.safetensors", &file);
    let refused = |weights: &str, container, change: &dyn Fn(&mut Options), word: &str| {
        let mut options = Options::new(Weights::named(weights).unwrap(), container);
        change(&mut options);
        let error = plan(&Checkpoint::open(&from).unwrap(), &options).unwrap_err().to_string();
        assert!(error.contains(word), "`{word}` is not in: {error}");
    };
    refused("nf4", Container::Gguf, &|_| (), "not a type of GGUF");
    refused("int8", Container::Gguf, &|_| (), "not a type of GGUF");
    refused("q4_k_m", Container::Safetensors, &|_| (), "mixture");
    refused("int8", Container::Safetensors, &|o| o.nested = true, "nested");
    refused("int8", Container::Safetensors, &|o| o.keys = Some(Keys::Bitsandbytes), "bitsandbytes");
    let none = |o: &mut Options| o.importances = Some(Importances::default());
    refused("q4_k", Container::Safetensors, &none, "importances");
    assert!(Weights::named("nf5").is_err());
    for (short, long) in [("i8", "int8"), ("u4", "uint4"), ("i4:32", "int4:32"), ("NF4", "nf4")] {
        assert_eq!(Weights::named(short).unwrap().name(), long);
    }
}

#[test]
fn kept_tensors_have_a_reason_and_globs_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(4096, 2);
    let file = safetensors_file(
        &[
            ("model.embed_tokens.weight", &[64, 64], &x),
            ("model.layers.0.input_layernorm.weight", &[64], &x[..64]),
            ("model.layers.0.q_proj.weight", &[64, 64], &x),
            ("model.layers.1.q_proj.weight", &[64, 64], &x),
            ("lm_head.weight", &[64, 64], &x),
        ],
        "float32",
    );
    let from = write(&folder, "model.safetensors", &file);
    let checkpoint = Checkpoint::open(&from).unwrap();
    let mut options = Options::new(Weights::named("nf4").unwrap(), Container::Safetensors);
    options.keep = vec!["model.layers.0.*".into(), "nothing*".into()];
    options.convert = vec!["lm_head*".into()];
    let plan = plan(&checkpoint, &options).unwrap();
    let kept: BTreeMap<&str, &str> = plan
        .items
        .iter()
        .filter(|item| item.is_kept())
        .map(|item| (checkpoint.entries[item.entry].name.as_str(), item.reason.as_str()))
        .collect();
    let want = [
        ("model.embed_tokens.weight", "an embedding"),
        ("model.layers.0.input_layernorm.weight", "--keep model.layers.0.*"),
        ("model.layers.0.q_proj.weight", "--keep model.layers.0.*"),
    ];
    assert_eq!(kept, BTreeMap::from(want));
    assert_eq!(plan.remarks, ["no tensor matches `nothing*`"]);
}

#[test]
fn keys_and_bytes_are_those_that_bitsandbytes_saves() {
    let folder = tempfile::tempdir().unwrap();
    let golden = midtread_testkit::root().join("testdata/golden");
    let read = |checkpoint: &Checkpoint, i: usize| {
        let mut bytes = vec![0; checkpoint.tensors[i].n_bytes as usize];
        checkpoint.read(i, 0, &mut bytes).unwrap();
        bytes
    };
    for name in ["nf4", "fp4", "llm_int8"] {
        let to = folder.path().join("out.safetensors");
        let weights = Weights::named(name).unwrap();
        let ours =
            convert_all(&golden.join("bitsandbytes_model.safetensors"), weights, &to).unwrap();
        let theirs = golden.join(format!("bitsandbytes_{name}.safetensors"));
        let theirs = Checkpoint::open(&theirs).unwrap();
        for (i, tensor) in theirs.tensors.iter().enumerate() {
            let k = ours.tensors.iter().position(|t| t.name == tensor.name);
            let k = k.unwrap_or_else(|| panic!("{name}: no key `{}`", tensor.name));
            let (ours_bytes, theirs_bytes) = (read(&ours, k), read(&theirs, i));
            assert_eq!(ours.tensors[k].dtype, tensor.dtype, "{}", tensor.name);
            if tensor.name.contains("quant_state") {
                let json =
                    |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
                assert_eq!(json(&ours_bytes), json(&theirs_bytes), "{}", tensor.name);
            } else {
                assert_eq!(ours.tensors[k].dims, tensor.dims, "{name}: {}", tensor.name);
                assert_eq!(ours_bytes, theirs_bytes, "{name}: {}", tensor.name);
            }
        }
        // And theirs is read as what it is.
        let back = values(&folder, &golden.join(format!("bitsandbytes_{name}.safetensors")));
        assert_eq!(back["b.weight"], values(&folder, &to)["b.weight"]);
    }
}

// Files that are not what they should be.

fn refused(folder: &TempDir, name: &str, bytes: &[u8], word: &str) {
    let error = Checkpoint::open(&write(folder, name, bytes)).unwrap_err().to_string();
    assert!(error.contains(word), "`{word}` is not in: {error}");
}

fn with_header(json: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

#[test]
fn hostile_safetensors_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let header = |json: &str, n_data, word| {
        refused(&folder, "a.safetensors", &with_header(json, n_data), word)
    };
    refused(&folder, "a.safetensors", &[1, 2], "too short");
    refused(&folder, "a.safetensors", &[0xFF; 64], "allowed");
    refused(
        &folder,
        "a.safetensors",
        &[200, 0, 0, 0, 0, 0, 0, 0, b'{'],
        "the file ends before that",
    );
    header("{", 0, "header");
    header("[]", 0, "map of tensors");
    header(&format!("{{\"w\":{}1{}}}", "[".repeat(5000), "]".repeat(5000)), 0, "header");
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let one = |t: String| format!("{{\"w\":{t}}}");
    header(&one(tensor("F33", "[1]", 0, 4)), 4, "F33");
    header(&one(tensor("F32", "[2]", 0, 4)), 4, "not 4 bytes");
    header(&one(tensor("F32", "[2]", 0, 8)), 4, "not within the file");
    header(&one(tensor("F32", "[1]", 8, 4)), 4, "not within the file");
    header(&one(tensor("F32", "[1]", 0, u64::MAX)), 4, "not within the file");
    header(&one(tensor("F32", "[4294967296,4294967296]", 0, 4)), 4, "too large");
    header(&one(tensor("F32", "[-1]", 0, 4)), 4, "w");
    header(&one(tensor("F32", "[1]", 0, 4)), 8, "belong to no tensor");
    let two = |a: String, b: String| format!("{{\"a\":{a},\"b\":{b}}}");
    header(&two(tensor("F32", "[2]", 0, 8), tensor("F32", "[2]", 4, 12)), 12, "overlaps");
    header(&two(tensor("F32", "[1]", 0, 4), tensor("F32", "[1]", 8, 12)), 12, "gap");
    let w = tensor("F32", "[1]", 0, 4);
    header(&format!("{{\"w\":{w},\"w\":{w}}}"), 4, "twice");
    // What the metadata say must fit the tensors.
    let described = |format: &str, dims: &str| {
        format!(
            "{{\"__metadata__\":{{\"midtread\":\"{{\\\"w\\\":{{\\\"format\\\":\\\"{format}\\\",\\\"dtype\\\":\\\"float32\\\",\\\"dims\\\":{dims}}}}}\"}},\"w.codes\":{},\"w.scale\":{}}}",
            tensor("I8", "[4]", 0, 4),
            tensor("F32", "[1]", 4, 8)
        )
    };
    assert!(
        Checkpoint::open(&write(
            &folder,
            "ok.safetensors",
            with_header(&described("int8", "[1,4]"), 8).as_slice()
        ))
        .is_ok()
    );
    header(&described("int8", "[2,4]"), 8, "should be 8 bytes");
    header(&described("int8", "[4611686018427387904]"), 8, "too small");
    header(&described("int7", "[1,4]"), 8, "uint8");
    header(&described("nothing", "[1,4]"), 8, "nothing");
    header(&described("nf4", "[1,4]"), 8, "absmax");
}

#[test]
fn an_index_does_not_lead_out_of_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let file = safetensors_file(&[("w", &[2], &[1.0, 2.0])], "float32");
    fs::write(folder.path().join("secret.safetensors"), &file).unwrap();
    fs::write(inner.join("good.safetensors"), &file).unwrap();
    let open = |name: &str, tensor: &str| {
        let path = inner.join("model.safetensors.index.json");
        fs::write(&path, format!("{{\"weight_map\":{{\"{tensor}\":\"{name}\"}}}}")).unwrap();
        Checkpoint::open(&path)
    };
    assert!(open("good.safetensors", "w").is_ok());
    let absolute = folder.path().join("secret.safetensors").display().to_string();
    for name in [
        "../secret.safetensors",
        "..",
        ".",
        "",
        "a/../good.safetensors",
        "./good.safetensors",
        &absolute,
        "..\\\\secret",
        "C:secret",
    ] {
        let error = open(name, "w").unwrap_err().to_string();
        assert!(error.contains("plain name"), "{name}: {error}");
    }
    let error = open("good.safetensors", "other").unwrap_err().to_string();
    assert!(error.contains("`other`"), "{error}");
}

#[test]
fn hostile_gguf_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let x = [1.0; 64];
    let good =
        gguf_file(&[KeyValue::string("general.name", "x")], &[("a", &[64], &x), ("b", &[64], &x)]);
    let open = |bytes: &[u8], word| refused(&folder, "a.gguf", bytes, word);
    let changed = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    open(&good[..20], "it ends");
    open(&good[..good.len() - 300], "not within the file");
    open(&changed(4, &1_u32.to_le_bytes()), "version 1");
    open(&changed(4, &3_u32.to_be_bytes()), "big-endian");
    open(&changed(8, &u64::MAX.to_le_bytes()), "");
    open(&changed(16, &u64::MAX.to_le_bytes()), "");
    open(&changed(24, &u64::MAX.to_le_bytes()), "it ends");
    // Behind the key's name, twelve bytes long: its type, and its length.
    open(&changed(44, &77_u32.to_le_bytes()), "type 77");
    open(&changed(48, &(1_u64 << 60).to_le_bytes()), "it ends");
    // The first tensor: name of one byte at 57, dimensions at 66, its size at 70, type at 78, offset at 82.
    open(&changed(66, &9_u32.to_le_bytes()), "9 dimensions");
    open(&changed(70, &u64::MAX.to_le_bytes()), "too large");
    open(&changed(78, &999_u32.to_le_bytes()), "type 999");
    open(&changed(78, &12_u32.to_le_bytes()), "whole blocks");
    open(&changed(82, &7_u64.to_le_bytes()), "multiple");
    open(&changed(82, &(u64::MAX - 31).to_le_bytes()), "not within");
    open(&changed(82, &256_u64.to_le_bytes()), "overlap");
    open(&changed(65, b"b"), "twice");
    // Arrays in arrays in arrays.
    let mut deep = b"GGUF".to_vec();
    deep.extend(3_u32.to_le_bytes());
    deep.extend(0_u64.to_le_bytes());
    deep.extend(1_u64.to_le_bytes());
    deep.extend(1_u64.to_le_bytes());
    deep.push(b'k');
    deep.extend(9_u32.to_le_bytes());
    for _ in 0..100_000 {
        deep.extend(9_u32.to_le_bytes());
        deep.extend(1_u64.to_le_bytes());
    }
    open(&deep, "nest too deep");
    for alignment in [0, 3, u32::MAX] {
        let keys = [KeyValue::string("a", "b"), KeyValue::u32("general.alignment", 32)];
        let mut bytes = gguf_file(&keys, &[]);
        let at = bytes.windows(8).position(|w| w == [4, 0, 0, 0, 32, 0, 0, 0]).unwrap();
        bytes[at + 4..at + 8].copy_from_slice(&alignment.to_le_bytes());
        open(&bytes, "power of two");
    }
}

/// A file of each kind, with quantized tensors in it.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let x = weights(4 * 96, 8);
    let tensors: &[Given<'_>] = &[("w.weight", &[4, 96], &x), ("n", &[3], &x[..3])];
    let from = write(&folder, "model.safetensors", &safetensors_file(tensors, "float32"));
    let mut samples = vec![];
    for (weights, name) in [
        ("nf4_nested", "out.safetensors"),
        ("llm_int8", "out.safetensors"),
        ("uint4:32", "out.safetensors"),
        ("q4_0", "out.gguf"),
    ] {
        let to = folder.path().join(name);
        convert_all(&from, Weights::named(weights).unwrap(), &to).unwrap();
        samples.push((name, fs::read(&to).unwrap()));
    }
    samples
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_bytes_never_panic_and_never_make_a_huge_file(
        which in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        use std::sync::LazyLock;
        static SAMPLES: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(samples);
        let (name, mut bytes) = SAMPLES[which].clone();
        // Mostly where the structure is, before the data.
        let head = bytes.len().min(if name.ends_with("gguf") { 300 } else { 900 });
        for (at, value) in changes {
            let at = at.index(head);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let from = write(&folder, name, &bytes);
        let to = folder.path().join("back.safetensors");
        if convert_all(&from, Weights::Float32, &to).is_ok() {
            prop_assert!(fs::metadata(&to).unwrap().len() <= 64 * bytes.len() as u64 + 4096);
        }
    }
}
