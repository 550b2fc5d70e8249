//! What a program does on Ctrl-C. One test alone in its process, because it removes the files of every save in it.

use std::{fs, thread, time::Duration};

use midtread_graph::{DataType, Model, Tensor};
use midtread_onnx::{SaveOptions, remove_partial_files, save};

#[test]
fn a_save_that_is_interrupted_leaves_the_old_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    fs::write(&path, "old").unwrap();
    let mut model =
        Model { ir_version: 10, opset_imports: vec![(String::new(), 21)], ..Model::default() };
    let zeros = Tensor::zeros(DataType::Uint8, vec![40_000_000]).unwrap();
    for i in 0..10 {
        model.graph.add_constant(&format!("w{i}"), zeros.clone());
    }
    let n_partial = || {
        let names = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".partial")).count()
    };
    thread::scope(|scope| {
        let save = scope.spawn(|| save(&model, &path, &SaveOptions::default()));
        while n_partial() == 0 && !save.is_finished() {
            thread::sleep(Duration::from_micros(100));
        }
        remove_partial_files();
        let result = save.join().unwrap();
        assert!(result.is_err(), "400 MB take longer to write than a file takes to appear");
    });
    assert_eq!(n_partial(), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
}
