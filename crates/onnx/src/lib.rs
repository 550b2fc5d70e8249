//! ONNX files: bytes to [`Model`] and back.
//!
//! [`load`] maps the file and decodes it with the weights left where they are: a tensor's bytes are a slice of the
//! mapping, so a file of any size is open in milliseconds, and its pages are read when they are used. Everything
//! that the file says is kept: what midtread does not work with (training information, device configurations,
//! sparse tensors, quantization annotations) is carried as it was. [`save`] streams, writes the same bytes for the
//! same model, and replaces its target in one step.
//!
//! A file may come from anyone. Before anything is built, [`scan`] walks it and refuses what is not ONNX, what is
//! cut off, what nests too deep, what this version does not know, and what would unfold to far more than its size.
//!
//! Reading order: [`error`] (what can be wrong with a file), `scan` (the walk over the bytes), `decode` (protobuf to
//! [`Graph`](midtread_graph::Graph)), `tensor` (the many ways in which ONNX stores elements), `external` (data in
//! other files), `order` (topological order), `encode` (the streaming writer), `save` (files and their replacement).
#![deny(unsafe_code)]

mod decode;
mod encode;
pub mod error;
mod external;
mod order;
#[allow(
    dead_code,
    unreachable_pub,
    clippy::all,
    reason = "generated from all of the definitions, of which the writer is not used"
)]
mod proto;
mod save;
mod scan;
mod schema;
mod tensor;

use std::path::Path;

use bytes::Bytes;
use midtread_graph::{Model, Tensor};
use prost::Message as _;

pub use crate::{
    error::{Error, Problem},
    save::{
        ExternalData, SaveOptions, SaveReport, n_bytes, remove_partial_files, save,
        tensor_to_bytes, to_bytes,
    },
};

/// The newest IR version that this version reads: that of `proto/onnx.proto`.
pub const MAX_IR_VERSION: i64 = 14;

/// Reads the model in a file.
///
/// The file, and files with external data that it names, stay mapped while any tensor of the model is alive. They
/// must not be cut short in that time: reading a mapped page that is gone ends the process. Replacing them by
/// renaming, as [`save`] does, is safe.
pub fn load(path: impl AsRef<Path>) -> Result<Model, Error> {
    let path = path.as_ref();
    let read = || match external::map_file(path)? {
        Some(file) => model(file.bytes, external::Files::beside(path, file.pages)),
        None => model(Bytes::new(), external::Files::new(None)),
    };
    read().map_err(|problem| Error::in_file(path, problem))
}

/// Decodes a model. Tensors share `bytes`. External data is looked for in `base_dir`, and refused without one.
pub fn from_bytes(bytes: Bytes, base_dir: Option<&Path>) -> Result<Model, Error> {
    model(bytes, external::Files::new(base_dir)).map_err(Error::from)
}

/// Decodes a `TensorProto`, the format of the `.pb` files in ONNX test data sets. Its name is in
/// [`Tensor::notes`].
pub fn tensor_from_bytes(bytes: Bytes) -> Result<Tensor, Error> {
    let read = || {
        scan::check(&bytes, schema::TENSOR)?;
        let proto = proto::TensorProto::decode(bytes).map_err(error::undecodable)?;
        tensor::decode(proto, tensor::Naming::InNotes, &mut external::Files::new(None))
    };
    read().map_err(Error::from)
}

fn model(bytes: Bytes, files: external::Files) -> Result<Model, Problem> {
    scan::check(&bytes, schema::MODEL)?;
    let proto = proto::ModelProto::decode(bytes).map_err(error::undecodable)?;
    decode::model(proto, files)
}

#[cfg(test)]
mod tests;
