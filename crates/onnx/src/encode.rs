//! The model in memory to protobuf messages, written as they are made.
//!
//! A protobuf message comes after its length, so the same code runs twice: once into [`Measure`], which only counts,
//! and once into [`Emit`], which writes, and takes the lengths that the first run found. Fields go out in the order
//! of their numbers, as every protobuf library writes them, so a file that came from one comes back byte for byte if
//! it stored its tensors as `raw_data`.

use std::io::{self, Write};

use midtread_graph::{
    Attr, AttrValue, Dim, Function, Graph, Model, Node, Opaque, Shape, Tensor, Type, TypeKind,
    ValueId,
};

/// Where bytes go.
pub(crate) trait Sink: Sized {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// A message in field `number`, with its length before it.
    fn message(
        &mut self,
        number: u32,
        body: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Where the tensor's data lies, if not in the message. Called once a tensor, in the same order in every run.
    fn place(&mut self, tensor: &Tensor) -> Option<Place>;
}

/// A tensor's place in a file with external data.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The file's name.
    pub(crate) location: String,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Which tensors go to which other file.
#[derive(Clone, Debug)]
pub(crate) struct External {
    /// The file's name.
    pub(crate) location: String,
    /// Tensors with fewer bytes stay in the model.
    pub(crate) min_bytes: usize,
}

/// Counts bytes, and gives tensors their places.
#[derive(Default)]
pub(crate) struct Measure {
    n_bytes: u64,
    lengths: Vec<u64>,
    external: Option<External>,
    places: Vec<Option<Place>>,
    tensors: Vec<(u64, Tensor)>,
    data_end: u64,
}

/// What a [`Measure`] run found.
pub(crate) struct Layout {
    /// Of the model's message.
    pub(crate) n_bytes: u64,
    /// External tensors and where they lie, ascending.
    pub(crate) tensors: Vec<(u64, Tensor)>,
    /// Size of the file with external data.
    pub(crate) data_bytes: u64,
    lengths: Vec<u64>,
    places: Vec<Option<Place>>,
}

/// The boundaries on which external data begins. The specification asks for multiples of 4096 (a page), and mapping
/// a part of a file takes 65,536 on Windows, which `onnx` uses for tensors of a mebibyte and more.
const ALIGN: u64 = 4096;
const ALIGN_LARGE: u64 = 65_536;
const LARGE: u64 = 1 << 20;

impl Measure {
    /// Lays the model out.
    pub(crate) fn model(m: &Model, external: Option<External>) -> Layout {
        let mut measure = Self { external, ..Self::default() };
        model(&mut measure, m).expect("counting does not fail");
        Layout {
            n_bytes: measure.n_bytes,
            tensors: measure.tensors,
            data_bytes: measure.data_end,
            lengths: measure.lengths,
            places: measure.places,
        }
    }
}

impl Sink for Measure {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    fn message(
        &mut self,
        number: u32,
        body: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let slot = self.lengths.len();
        self.lengths.push(0);
        let start = self.n_bytes;
        body(self)?;
        let length = self.n_bytes - start;
        self.lengths[slot] = length;
        key(self, number, 2)?;
        varint(self, length)
    }

    fn place(&mut self, tensor: &Tensor) -> Option<Place> {
        let length = tensor.as_bytes().len();
        let place = self.external.as_ref().filter(|e| 0 < length && e.min_bytes <= length).map(
            |external| {
                let length = length as u64;
                let offset = self.data_end.next_multiple_of(if LARGE <= length {
                    ALIGN_LARGE
                } else {
                    ALIGN
                });
                self.data_end = offset + length;
                self.tensors.push((offset, tensor.clone()));
                Place { location: external.location.clone(), offset, length }
            },
        );
        self.places.push(place.clone());
        place
    }
}

/// Writes.
struct Emit<'a, W> {
    out: &'a mut W,
    lengths: std::slice::Iter<'a, u64>,
    places: std::slice::Iter<'a, Option<Place>>,
}

impl Layout {
    /// Writes the model that was laid out.
    pub(crate) fn write(&self, m: &Model, out: &mut impl Write) -> io::Result<()> {
        model(&mut Emit { out, lengths: self.lengths.iter(), places: self.places.iter() }, m)
    }

    /// Writes the external data.
    pub(crate) fn write_data(&self, out: &mut impl Write) -> io::Result<()> {
        static ZEROS: [u8; ALIGN_LARGE as usize] = [0; ALIGN_LARGE as usize];
        let mut pos = 0;
        for (offset, tensor) in &self.tensors {
            out.write_all(&ZEROS[..(offset - pos) as usize])?;
            out.write_all(tensor.as_bytes())?;
            tensor.release_pages();
            pos = offset + tensor.as_bytes().len() as u64;
        }
        Ok(())
    }
}

impl<W: Write> Sink for Emit<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn message(
        &mut self,
        number: u32,
        body: impl FnOnce(&mut Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = *self.lengths.next().expect("as many messages as were measured");
        key(self, number, 2)?;
        varint(self, length)?;
        body(self)
    }

    fn place(&mut self, _: &Tensor) -> Option<Place> {
        self.places.next().expect("as many tensors as were measured").clone()
    }
}

/// A tensor as a message of its own.
pub(crate) fn tensor_message(t: &Tensor) -> Vec<u8> {
    let mut measure = Measure::default();
    tensor(&mut measure, t, "").expect("counting does not fail");
    let mut out = Vec::with_capacity(measure.n_bytes as usize);
    let (lengths, places) = (measure.lengths.iter(), measure.places.iter());
    tensor(&mut Emit { out: &mut out, lengths, places }, t, "").expect("a vector takes all bytes");
    out
}

fn key(s: &mut impl Sink, number: u32, wire_type: u32) -> io::Result<()> {
    varint(s, u64::from(number << 3 | wire_type))
}

fn varint(s: &mut impl Sink, mut value: u64) -> io::Result<()> {
    let (mut bytes, mut n) = ([0; 10], 0);
    loop {
        bytes[n] = value as u8 & 0x7f;
        value >>= 7;
        n += 1;
        if value == 0 {
            return s.put(&bytes[..n]);
        }
        bytes[n - 1] |= 0x80;
    }
}

fn int(s: &mut impl Sink, number: u32, value: i64) -> io::Result<()> {
    key(s, number, 0)?;
    varint(s, value as u64)
}

fn float(s: &mut impl Sink, number: u32, value: f32) -> io::Result<()> {
    key(s, number, 5)?;
    s.put(&value.to_le_bytes())
}

fn bytes(s: &mut impl Sink, number: u32, value: &[u8]) -> io::Result<()> {
    key(s, number, 2)?;
    varint(s, value.len() as u64)?;
    s.put(value)
}

/// A string that is left out when it is empty.
fn string(s: &mut impl Sink, number: u32, value: &str) -> io::Result<()> {
    if value.is_empty() { Ok(()) } else { bytes(s, number, value.as_bytes()) }
}

/// A string that is left out when it is empty, unless the file had it so.
fn marked(s: &mut impl Sink, number: u32, value: &str, opaque: &Opaque) -> io::Result<()> {
    if opaque.iter().any(|&(n, _)| n == number) {
        return bytes(s, number, value.as_bytes());
    }
    string(s, number, value)
}

fn carried(s: &mut impl Sink, number: u32, opaque: &Opaque) -> io::Result<()> {
    opaque
        .iter()
        .filter(|&&(n, _)| n == number)
        .try_for_each(|(_, content)| bytes(s, number, content))
}

fn pairs(s: &mut impl Sink, number: u32, pairs: &[(String, String)]) -> io::Result<()> {
    pairs.iter().try_for_each(|(key, value)| {
        s.message(number, |s| {
            bytes(s, 1, key.as_bytes())?;
            bytes(s, 2, value.as_bytes())
        })
    })
}

/// The default domain as an empty string, unless the file left it out.
fn imports(
    s: &mut impl Sink,
    number: u32,
    imports: &[(String, i64)],
    opaque: &Opaque,
) -> io::Result<()> {
    let leave_out = opaque.iter().any(|&(n, _)| n == number);
    imports.iter().try_for_each(|(domain, version)| {
        s.message(number, |s| {
            if !(leave_out && domain.is_empty()) {
                bytes(s, 1, domain.as_bytes())?;
            }
            int(s, 2, *version)
        })
    })
}

fn model(s: &mut impl Sink, m: &Model) -> io::Result<()> {
    int(s, 1, m.ir_version)?;
    marked(s, 2, &m.producer_name, &m.opaque)?;
    marked(s, 3, &m.producer_version, &m.opaque)?;
    marked(s, 4, &m.domain, &m.opaque)?;
    if m.model_version != 0 || m.opaque.iter().any(|&(n, _)| n == 5) {
        int(s, 5, m.model_version)?;
    }
    marked(s, 6, &m.doc_string, &m.opaque)?;
    s.message(7, |s| graph(s, &m.graph))?;
    imports(s, 8, &m.opset_imports, &m.opaque)?;
    pairs(s, 14, &m.metadata)?;
    carried(s, 20, &m.opaque)?;
    m.functions.iter().try_for_each(|f| s.message(25, |s| function(s, f)))?;
    carried(s, 26, &m.opaque)
}

fn graph(s: &mut impl Sink, g: &Graph) -> io::Result<()> {
    g.nodes.iter().try_for_each(|n| s.message(1, |s| node(s, g, n)))?;
    marked(s, 2, &g.name, &g.opaque)?;
    for &id in &g.initializers {
        let value = g.value(id);
        let t = value.constant.as_ref().expect("an initializer has a tensor");
        s.message(5, |s| tensor(s, t, value.name()))?;
    }
    marked(s, 10, &g.doc_string, &g.opaque)?;
    for (number, ids) in [(11, &g.inputs), (12, &g.outputs), (13, &g.value_info)] {
        ids.iter().try_for_each(|&id| s.message(number, |s| value_info(s, g, id)))?;
    }
    carried(s, 14, &g.opaque)?;
    carried(s, 15, &g.opaque)?;
    pairs(s, 16, &g.metadata)
}

fn function(s: &mut impl Sink, f: &Function) -> io::Result<()> {
    let g = &f.body;
    bytes(s, 1, f.name.as_bytes())?;
    g.inputs.iter().try_for_each(|&id| bytes(s, 4, g.value_name(id).as_bytes()))?;
    g.outputs.iter().try_for_each(|&id| bytes(s, 5, g.value_name(id).as_bytes()))?;
    f.attributes.iter().try_for_each(|name| bytes(s, 6, name.as_bytes()))?;
    g.nodes.iter().try_for_each(|n| s.message(7, |s| node(s, g, n)))?;
    marked(s, 8, &f.doc_string, &f.opaque)?;
    imports(s, 9, &f.opset_imports, &f.opaque)?;
    marked(s, 10, &f.domain, &f.opaque)?;
    f.attribute_defaults.iter().try_for_each(|a| s.message(11, |s| attr(s, a)))?;
    g.value_info.iter().try_for_each(|&id| s.message(12, |s| value_info(s, g, id)))?;
    marked(s, 13, &f.overload, &f.opaque)?;
    pairs(s, 14, &f.metadata)
}

fn node(s: &mut impl Sink, g: &Graph, n: &Node) -> io::Result<()> {
    let name = |id: &Option<ValueId>| id.map_or(&[][..], |id| g.value_name(id).as_bytes());
    n.inputs.iter().try_for_each(|id| bytes(s, 1, name(id)))?;
    n.outputs.iter().try_for_each(|id| bytes(s, 2, name(id)))?;
    marked(s, 3, &n.name, &n.opaque)?;
    bytes(s, 4, n.op_type.as_bytes())?;
    n.attrs.iter().try_for_each(|a| s.message(5, |s| attr(s, a)))?;
    marked(s, 6, &n.doc_string, &n.opaque)?;
    marked(s, 7, &n.domain, &n.opaque)?;
    marked(s, 8, &n.overload, &n.opaque)?;
    pairs(s, 9, &n.metadata)?;
    carried(s, 10, &n.opaque)
}

fn attr(s: &mut impl Sink, a: &Attr) -> io::Result<()> {
    bytes(s, 1, a.name.as_bytes())?;
    // Number 13, the documentation, lies between the fields of values.
    let doc = |s: &mut _| string(s, 13, &a.doc_string);
    let kind = match &a.value {
        AttrValue::Float(x) => float(s, 2, *x).map(|()| 1)?,
        AttrValue::Int(x) => int(s, 3, *x).map(|()| 2)?,
        AttrValue::String(x) => bytes(s, 4, x).map(|()| 3)?,
        AttrValue::Tensor(t) => s.message(5, |s| tensor(s, t, "")).map(|()| 4)?,
        AttrValue::Graph(g) => s.message(6, |s| graph(s, g)).map(|()| 5)?,
        AttrValue::Floats(xs) => xs.iter().try_for_each(|&x| float(s, 7, x)).map(|()| 6)?,
        AttrValue::Ints(xs) => xs.iter().try_for_each(|&x| int(s, 8, x)).map(|()| 7)?,
        AttrValue::Strings(xs) => xs.iter().try_for_each(|x| bytes(s, 9, x)).map(|()| 8)?,
        AttrValue::Tensors(ts) => {
            ts.iter().try_for_each(|t| s.message(10, |s| tensor(s, t, ""))).map(|()| 9)?
        }
        AttrValue::Graphs(gs) => {
            gs.iter().try_for_each(|g| s.message(11, |s| graph(s, g))).map(|()| 10)?
        }
        AttrValue::Type(_) => 13,
        AttrValue::Types(_) => 14,
        AttrValue::Ref { ty, .. } | AttrValue::Opaque { ty, .. } => *ty,
    };
    doc(s)?;
    match &a.value {
        AttrValue::Type(ty) => s.message(14, |s| type_proto(s, ty))?,
        AttrValue::Types(types) => {
            types.iter().try_for_each(|ty| s.message(15, |s| type_proto(s, ty)))?
        }
        _ => {}
    }
    int(s, 20, i64::from(kind))?;
    match &a.value {
        AttrValue::Ref { name, .. } => bytes(s, 21, name.as_bytes()),
        AttrValue::Opaque { fields, .. } => {
            fields.iter().try_for_each(|(number, content)| bytes(s, *number, content))
        }
        _ => Ok(()),
    }
}

/// A tensor named `name`, or as its notes say where that is empty.
fn tensor(s: &mut impl Sink, t: &Tensor, name: &str) -> io::Result<()> {
    let place = s.place(t);
    let notes = t.notes();
    let name = if name.is_empty() { notes.map_or("", |n| n.name.as_str()) } else { name };
    t.dims().iter().try_for_each(|&d| int(s, 1, d as i64))?;
    int(s, 2, i64::from(t.dtype().to_onnx()))?;
    t.as_strings().unwrap_or_default().iter().try_for_each(|string| bytes(s, 6, string))?;
    string(s, 8, name)?;
    if place.is_none() && t.as_strings().is_none() {
        bytes(s, 9, t.as_bytes())?;
        t.release_pages();
    }
    string(s, 12, notes.map_or("", |n| n.doc_string.as_str()))?;
    if let Some(place) = place {
        let numbers = [("offset", place.offset), ("length", place.length)];
        let numbers = numbers.map(|(key, n)| (key.to_owned(), n.to_string()));
        pairs(s, 13, &[("location".to_owned(), place.location)])?;
        pairs(s, 13, &numbers)?;
        int(s, 14, 1)?;
    }
    pairs(s, 16, notes.map_or(&[], |n| n.metadata.as_slice()))
}

fn value_info(s: &mut impl Sink, g: &Graph, id: ValueId) -> io::Result<()> {
    let value = g.value(id);
    bytes(s, 1, value.name().as_bytes())?;
    if let Some(ty) = &value.ty {
        s.message(2, |s| type_proto(s, ty))?;
    }
    string(s, 3, &value.doc_string)?;
    pairs(s, 4, &value.metadata)
}

fn type_proto(s: &mut impl Sink, ty: &Type) -> io::Result<()> {
    /// `Tensor`, `SparseTensor` and `Map` begin with an element type and go on with a message.
    fn elem(s: &mut impl Sink, elem: Option<midtread_graph::DataType>) -> io::Result<()> {
        elem.map_or(Ok(()), |elem| int(s, 1, i64::from(elem.to_onnx())))
    }
    let denotation = |s: &mut _| string(s, 6, &ty.denotation);
    match &ty.kind {
        TypeKind::Tensor { elem: e, shape } => {
            s.message(1, |s| {
                elem(s, *e)?;
                shape.iter().try_for_each(|shape| s.message(2, |s| shape_proto(s, shape)))
            })?;
            denotation(s)
        }
        TypeKind::Sequence(inner) => {
            s.message(4, |s| inner.iter().try_for_each(|ty| s.message(1, |s| boxed(s, ty))))?;
            denotation(s)
        }
        TypeKind::Map { key, value } => {
            s.message(5, |s| {
                elem(s, *key)?;
                value.iter().try_for_each(|ty| s.message(2, |s| boxed(s, ty)))
            })?;
            denotation(s)
        }
        TypeKind::Opaque { domain, name } => {
            denotation(s)?;
            s.message(7, |s| {
                string(s, 1, domain)?;
                string(s, 2, name)
            })
        }
        TypeKind::SparseTensor { elem: e, shape } => {
            denotation(s)?;
            s.message(8, |s| {
                elem(s, *e)?;
                shape.iter().try_for_each(|shape| s.message(2, |s| shape_proto(s, shape)))
            })
        }
        TypeKind::Optional(inner) => {
            denotation(s)?;
            s.message(9, |s| inner.iter().try_for_each(|ty| s.message(1, |s| boxed(s, ty))))
        }
        TypeKind::Unset => denotation(s),
    }
}

/// Cuts the recursion of the types of closures.
fn boxed<S: Sink>(s: &mut S, ty: &Type) -> io::Result<()> {
    type_proto(s, ty)
}

fn shape_proto(s: &mut impl Sink, shape: &Shape) -> io::Result<()> {
    for (i, dim) in shape.dims.iter().enumerate() {
        s.message(1, |s| {
            match dim {
                Dim::Known(n) => int(s, 1, *n as i64)?,
                Dim::Symbol(name) => bytes(s, 2, name.as_bytes())?,
                Dim::Unknown => {}
            }
            string(s, 3, shape.denotations.get(i).map_or("", String::as_str))
        })?;
    }
    Ok(())
}
