//! What the passes share that turn a pattern of nodes, as exporters write it, into the operator that it is.

use std::cell::RefCell;

use midtread_graph::{
    Attr, AttrValue, DataType, Dim, Graph, Model, Node, Rewrite, Tensor, ValueId,
};

use crate::{error::Error, prepare::Ctx, view::View};

/// Looks at a graph from the last node of a pattern backwards, and remembers the nodes it went through.
pub(crate) struct Pattern<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) view: &'a View,
    inner: RefCell<Vec<usize>>,
}

/// The node that a pattern is.
pub(crate) struct Found {
    pub(crate) op_type: &'static str,
    pub(crate) domain: &'static str,
    pub(crate) inputs: Vec<Input>,
    pub(crate) attrs: Vec<(&'static str, AttrValue)>,
    /// The last node of the pattern, if it is not the one that was asked about.
    pub(crate) last: usize,
}

/// An input of the node.
pub(crate) enum Input {
    Value(ValueId),
    /// A constant that the pattern does not have.
    New(&'static str, Tensor),
    /// A value with its axes in another order.
    Transposed(ValueId, Vec<i64>),
}

/// Replaces every pattern that `find` recognizes by its first or middle node, whose index it is given.
pub(crate) fn fuse(
    model: &mut Model,
    ctx: &mut Ctx<'_>,
    find: impl Fn(&Pattern<'_>, usize) -> Option<Found>,
) -> Result<(), Error> {
    let graph = &mut model.graph;
    let view = View::new(graph);
    let mut gone = vec![false; graph.nodes.len()];
    let mut rewrite = Rewrite::default();
    for i in 0..graph.nodes.len() {
        if gone[i] {
            continue;
        }
        let pattern = Pattern { graph, view: &view, inner: RefCell::default() };
        let Some(found) = find(&pattern, i) else { continue };
        let mut inner = pattern.inner.into_inner();
        inner.push(i);
        inner.sort_unstable();
        inner.dedup();
        inner.retain(|&k| k != found.last);
        let label = graph.label(&graph.nodes[found.last]).to_owned();
        if inner.iter().any(|&k| gone[k]) || gone[found.last] {
            continue;
        }
        if let Some(name) = used_outside(graph, &view, &inner, found.last) {
            ctx.skip(
                &label,
                format!("it would be {}, but `{name}` has another use", found.op_type),
            );
            continue;
        }
        let mut inputs = Vec::new();
        for input in found.inputs {
            inputs.push(match input {
                Input::Value(id) => id,
                Input::New(what, tensor) => graph.add_constant(&format!("{label}_{what}"), tensor),
                Input::Transposed(id, perm) => {
                    let out = graph.fresh(&format!("{label}_transposed"));
                    let node = Node::new("Transpose", &format!("{label}_transpose"), [id], [out]);
                    rewrite
                        .insert_before(found.last, node.with_attr("perm", AttrValue::Ints(perm)));
                    out
                }
            });
        }
        let node = &mut graph.nodes[found.last];
        node.op_type = found.op_type.to_owned();
        node.domain = found.domain.to_owned();
        node.overload = String::new();
        node.inputs = inputs.into_iter().map(Some).collect();
        let attr = |(name, value): (&str, AttrValue)| Attr {
            name: name.to_owned(),
            value,
            doc_string: String::new(),
        };
        node.attrs = found.attrs.into_iter().map(attr).collect();
        for k in inner {
            gone[k] = true;
            rewrite.remove(k);
        }
        gone[found.last] = true;
        ctx.change(&label, format!("is {} now", found.op_type));
    }
    rewrite.apply(graph);
    Ok(())
}

/// A value that a node of the pattern makes, but the last, and something else needs.
fn used_outside<'g>(
    graph: &'g Graph,
    view: &View,
    inner: &[usize],
    last: usize,
) -> Option<&'g str> {
    let inside = |user: &usize| inner.contains(user) || *user == last;
    let made = inner.iter().flat_map(|&k| graph.nodes[k].outputs.iter().flatten());
    made.copied()
        .find(|&id| {
            view.links.is_output(id)
                || view.links.is_captured(id)
                || !view.links.consumers(id).iter().all(inside)
        })
        .map(|id| graph.value_name(id))
}

impl<'a> Pattern<'a> {
    /// The node that makes `id`, if it is an `op_type`: part of the pattern from here on.
    pub(crate) fn made_by(&self, id: ValueId, op_type: &str) -> Option<&'a Node> {
        let i = self.view.producer(id)?;
        let node = &self.graph.nodes[i];
        if !node.is(op_type) {
            return None;
        }
        self.inner.borrow_mut().push(i);
        Some(node)
    }

    /// Forgets the nodes gone through since there were `n`, of an attempt that came to nothing.
    pub(crate) fn attempt<T>(&self, f: impl FnOnce() -> Option<T>) -> Option<T> {
        let n = self.inner.borrow().len();
        let result = f();
        if result.is_none() {
            self.inner.borrow_mut().truncate(n);
        }
        result
    }

    /// Looks without remembering the nodes gone through.
    pub(crate) fn probe<T>(&self, f: impl FnOnce() -> T) -> T {
        let n = self.inner.borrow().len();
        let result = f();
        self.inner.borrow_mut().truncate(n);
        result
    }

    /// The one node that uses `id`, and its index, if it is an `op_type`.
    pub(crate) fn used_by(&self, id: ValueId, op_type: &str) -> Option<(usize, &'a Node)> {
        let i = self.view.links.only_consumer(id)?;
        let node = &self.graph.nodes[i];
        node.is(op_type).then_some((i, node))
    }

    /// Says that node `i` belongs to the pattern.
    pub(crate) fn take(&self, i: usize) {
        self.inner.borrow_mut().push(i);
    }

    /// The number that a float constant of one element is. Of more than one dimension it would change ranks.
    pub(crate) fn scalar(&self, id: ValueId) -> Option<f32> {
        let tensor = self.view.constant(self.graph, id)?;
        (tensor.dtype() == DataType::Float && tensor.dims().len() <= 1).then(|| tensor.item())?
    }

    /// The two inputs of a node of which one is a scalar constant: the other, and the number.
    pub(crate) fn with_scalar(&self, node: &Node) -> Option<(ValueId, f32)> {
        let [Some(a), Some(b)] = node.inputs[..] else { return None };
        match (self.scalar(a), self.scalar(b)) {
            (None, Some(c)) => Some((a, c)),
            (Some(c), None) if node.is("Add") || node.is("Mul") => Some((b, c)),
            _ => None,
        }
    }

    /// `x * c` or `x / c`, as `x` and the factor.
    pub(crate) fn scaled(&self, id: ValueId) -> Option<(ValueId, f32)> {
        self.attempt(|| self.with_scalar(self.made_by(id, "Mul")?)).or_else(|| {
            self.attempt(|| {
                let (x, c) = self.with_scalar(self.made_by(id, "Div")?)?;
                Some((x, 1.0 / c))
            })
        })
    }

    /// `x + c`, as both.
    pub(crate) fn shifted(&self, id: ValueId) -> Option<(ValueId, f32)> {
        self.attempt(|| self.with_scalar(self.made_by(id, "Add")?))
    }

    /// The factors of a product, however its multiplications are nested, and the product of those that are constants. What
    /// `stop` holds for is a factor, even if it is a product.
    pub(crate) fn factors(
        &self,
        id: ValueId,
        stop: &dyn Fn(ValueId) -> bool,
    ) -> (Vec<ValueId>, f32) {
        let (mut factors, mut product) = (Vec::new(), 1.0);
        let mut left = vec![id];
        while let Some(id) = left.pop() {
            if let Some(c) = self.scalar(id) {
                product *= c;
            } else if stop(id) || 8 < factors.len() + left.len() {
                factors.push(id);
            } else if let Some([Some(a), Some(b)]) =
                self.made_by(id, "Mul").map(|node| node.inputs.as_slice())
            {
                left.extend([*a, *b]);
            } else if let Some((x, c)) = self.attempt(|| self.with_scalar(self.made_by(id, "Div")?))
            {
                product /= c;
                left.push(x);
            } else {
                factors.push(id);
            }
        }
        factors.sort_unstable();
        (factors, product)
    }

    /// The element type, which every operator here must have as `float`.
    pub(crate) fn is_float(&self, id: ValueId) -> bool {
        self.graph.type_of(id).is_some_and(|ty| ty.elem() == Some(DataType::Float))
    }

    /// The sizes as far as they are known.
    pub(crate) fn dims(&self, id: ValueId) -> Option<Vec<Dim>> {
        Some(self.graph.type_of(id)?.dims()?.to_vec())
    }

    /// Rank.
    pub(crate) fn rank(&self, id: ValueId) -> Option<usize> {
        self.dims(id).map(|dims| dims.len())
    }

    /// Whether the node reduces over the last axis and keeps it with size 1. `x` is what it reduces.
    pub(crate) fn is_over_last(&self, node: &Node, x: ValueId) -> bool {
        let axes = match (node.ints("axes"), node.input(1)) {
            (Some(axes), _) => axes.to_vec(),
            (None, Some(id)) => {
                match self.view.constant(self.graph, id).and_then(|t| t.to_vec::<i64>().ok()) {
                    Some(axes) => axes,
                    None => return false,
                }
            }
            (None, None) => return false,
        };
        let last = self.rank(x).map(|rank| rank as i64 - 1);
        matches!(axes[..], [axis] if axis == -1 || Some(axis) == last)
            && node.int("keepdims").unwrap_or(1) == 1
    }

    /// A constant of one dimension that is as long as `x`'s last.
    pub(crate) fn is_along_last(&self, id: ValueId, x: ValueId) -> bool {
        let Some(Dim::Known(n)) = self.dims(x).and_then(|dims| dims.last().cloned()) else {
            return false;
        };
        self.view
            .constant(self.graph, id)
            .is_some_and(|t| t.dtype() == DataType::Float && t.dims() == [n])
    }
}

/// Whether a constant is the number to the precision of `float32`.
pub(crate) fn exactly(a: f32, b: f64) -> bool {
    (f64::from(a) - b).abs() <= 2e-7 * b.abs()
}
