//! A model larger than memory ought to be: its weights must stay in the file. One test alone in its process, because
//! it measures the process.
#![cfg(target_os = "linux")]

use std::{fs, time::Instant};

use midtread_graph::DataType;
use midtread_onnx::load;

/// Resident pages of this process, in MiB.
fn resident_mib() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

/// Resident pages of this process that are its own, in MiB: `statm`'s second field without its third.
fn private_mib() -> f64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: Vec<f64> = statm.split_whitespace().map(|n| n.parse().unwrap()).collect();
    (pages[1] - pages[2]) * 4096.0 / f64::from(1 << 20)
}

#[test]
fn three_gib_of_external_data_load_in_milliseconds_and_stay_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    // Zeros that the file system does not store.
    fs::File::create(folder.path().join("m.data")).unwrap().set_len(3 << 30).unwrap();
    fs::write(&path, model_with_two_tensors_of_1536_mib()).unwrap();

    let before = private_mib();
    let start = Instant::now();
    let model = load(&path).unwrap();
    let elapsed = start.elapsed();
    let after = private_mib();
    let ids = model.graph.initializers.clone();
    for &id in &ids {
        let tensor = model.graph.constant(id).unwrap();
        assert_eq!((tensor.dtype(), tensor.as_bytes().len()), (DataType::Float, 3 << 29));
    }
    assert!(after - before < 50.0, "{} MiB more than before", after - before);
    assert!(elapsed.as_millis() < 250, "took {elapsed:?}");
    // A walk over the weights keeps in memory what it is at, not what it has seen.
    let tensor = model.graph.constant(ids[0]).unwrap();
    let before = resident_mib();
    assert_eq!(tensor.as_bytes().iter().step_by(4096).fold(0, |sum, &byte| sum | byte), 0);
    assert!(1000.0 < resident_mib() - before, "the walk was to bring it into memory");
    tensor.release_pages();
    assert!(resident_mib() - before < 50.0, "{} MiB stay", resident_mib() - before);
    assert_eq!(tensor.as_bytes()[1 << 20], 0, "it can be read again");
    println!("3 GiB in {elapsed:?}, {:.2} MiB private", after - before);
}

fn model_with_two_tensors_of_1536_mib() -> Vec<u8> {
    let tensor = |name: &str, offset: u64| {
        let entry = |key: &str, value: &str| {
            field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
        };
        let tensor = [
            number(1, 3 << 27),
            number(2, 1),
            field(8, name.as_bytes()),
            entry("location", "m.data"),
            entry("offset", &offset.to_string()),
            entry("length", &(3_u64 << 29).to_string()),
            number(14, 1),
        ];
        field(5, &tensor.concat())
    };
    let graph = [tensor("a", 0), tensor("b", 3 << 29)].concat();
    [number(1, 10), field(7, &graph), field(8, &number(2, 21))].concat()
}

/// A length-delimited protobuf field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(content.len() as u64), content].concat()
}

/// A varint field.
fn number(number: u8, value: u64) -> Vec<u8> {
    [&[number << 3][..], &varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while 0x80 <= value {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}
