//! What is known about a value before it exists.

use std::fmt;

use crate::dtype::DataType;

/// `TypeProto`.
#[derive(Clone, Debug, PartialEq)]
pub struct Type {
    /// Which of the kinds of type it is.
    pub kind: TypeKind,
    /// `TypeProto.denotation`.
    pub denotation: String,
}

/// The kinds of type.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum TypeKind {
    /// A dense tensor. `elem` is `None` where the file leaves it open, `shape` where even the rank is unknown.
    Tensor {
        elem: Option<DataType>,
        shape: Option<Shape>,
    },
    SparseTensor {
        elem: Option<DataType>,
        shape: Option<Shape>,
    },
    Sequence(Option<Box<Type>>),
    Optional(Option<Box<Type>>),
    Map {
        key: Option<DataType>,
        value: Option<Box<Type>>,
    },
    Opaque {
        domain: String,
        name: String,
    },
    /// A `TypeProto` with nothing set.
    Unset,
}

/// The sizes of a tensor, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Outermost first.
    pub dims: Vec<Dim>,
    /// `Dimension.denotation` of each, or empty when none has one.
    pub denotations: Vec<String>,
}

/// One size.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A number.
    Known(usize),
    /// `dim_param`: a name (`batch`), or an expression over names (`batch*seq + 1`). Equal text means equal size.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

impl Type {
    /// A tensor type.
    pub fn tensor(elem: DataType, dims: Option<Vec<Dim>>) -> Self {
        let shape = dims.map(|dims| Shape { dims, denotations: Vec::new() });
        Self { kind: TypeKind::Tensor { elem: Some(elem), shape }, denotation: String::new() }
    }

    /// The element type of a tensor.
    pub fn elem(&self) -> Option<DataType> {
        match &self.kind {
            TypeKind::Tensor { elem, .. } => *elem,
            _ => None,
        }
    }

    /// The sizes of a tensor of known rank.
    pub fn dims(&self) -> Option<&[Dim]> {
        match &self.kind {
            TypeKind::Tensor { shape: Some(shape), .. } => Some(&shape.dims),
            _ => None,
        }
    }

    /// The sizes, if every one is a number.
    pub fn known_dims(&self) -> Option<Vec<usize>> {
        self.dims()?.iter().map(Dim::known).collect()
    }
}

impl Dim {
    /// The size, if it is a number.
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(*n),
            Self::Symbol(_) | Self::Unknown => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Symbol(text) => f.write_str(text),
            Self::Unknown => f.write_str("?"),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TypeKind::Tensor { elem, shape } | TypeKind::SparseTensor { elem, shape } => {
                f.write_str(elem.map_or("?", DataType::name))?;
                match shape {
                    Some(shape) => {
                        let dims: Vec<String> = shape.dims.iter().map(Dim::to_string).collect();
                        write!(f, "[{}]", dims.join(","))
                    }
                    None => f.write_str("[...]"),
                }
            }
            TypeKind::Sequence(_) => f.write_str("sequence"),
            TypeKind::Optional(_) => f.write_str("optional"),
            TypeKind::Map { .. } => f.write_str("map"),
            TypeKind::Opaque { name, .. } => write!(f, "opaque {name}"),
            TypeKind::Unset => f.write_str("?"),
        }
    }
}
