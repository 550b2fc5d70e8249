//! A model in memory: graphs of nodes and values, types with symbolic sizes, and tensors whose bytes may lie in a
//! mapped file.
//!
//! This crate knows no protobuf (that is `midtread-onnx`), no arithmetic (that is `midtread-ops`) and no
//! quantization (that is `midtread-quant`). Inside a graph a value is addressed by [`ValueId`], at every border by
//! its name.
//!
//! Reading order: [`dtype`] (element types), [`tensor`] (typed bytes), [`types`] (what is known of a value before
//! it exists), [`model`] (model, graph, node), [`edit`] (who makes and uses a value; changing many nodes in one
//! linear walk).
#![forbid(unsafe_code)]

pub mod dtype;
pub mod edit;
pub mod model;
pub mod tensor;
pub mod types;

pub use bytes::Bytes;
pub use dtype::DataType;
pub use edit::{Links, Rewrite};
pub use model::{Attr, AttrValue, Function, Graph, Model, Node, Opaque, Value, ValueId};
pub use tensor::{AlignedBuf, Element, Home, Notes, Pages, Sample, Tensor, TensorError};
pub use types::{Dim, Shape, Type, TypeKind};
