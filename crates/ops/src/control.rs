//! Control flow: If, Loop and Scan, over graphs that somebody else runs ([`Bodies`]).

use midtread_graph::{Dim, Node, Tensor, Type};

use crate::{
    attr,
    def::{Eval, OpDef, Role},
    eval::{Bodies, Datum, EvalCtx, OpError},
    gather::{entry, joined, stacked},
    infer::{InferCtx, Info, normalize_axis},
    sym::SymDim,
    typed::{bools, indices},
};

/// What is in the graphs is not quantized, and neither is what goes in and out.
pub(crate) const ROLE: Role = Role::Float("it runs a graph of its own");

/// ONNX If 1, 11, 13, 16, 19, 21, 23, 24 and 25.
pub(crate) static IF: OpDef = OpDef {
    op_type: "If",
    domain: "",
    versions: &[1, 11, 13, 16, 19, 21, 23, 24, 25],
    attrs: &["else_branch", "then_branch"],
    infer: |ctx| {
        // A condition that is constant takes one branch.
        let condition = ctx.constant(0).and_then(|c| Some(*bools(c).ok()?.first()? != 0));
        let branch = |ctx: &InferCtx<'_>, taken: bool| {
            ctx.body(if taken { "then_branch" } else { "else_branch" }, Vec::new())
        };
        let infos = match condition {
            Some(taken) => branch(ctx, taken),
            None => {
                let (a, b) = (branch(ctx, true), branch(ctx, false));
                a.iter().zip(&b).map(|(a, b)| a.common(b)).collect()
            }
        };
        infos.into_iter().enumerate().for_each(|(i, info)| ctx.set_info(i, info));
        Ok(())
    },
    eval: Eval::Bodies(|_, inputs, bodies| {
        let condition = truth(tensor(&inputs, 0)?.ok_or(OpError::MissingInput(0))?)?;
        bodies.run(if condition { "then_branch" } else { "else_branch" }, Vec::new())
    }),
    role: ROLE,
};

/// Input `i`, which may be left out and must be a tensor.
fn tensor(inputs: &[Option<Datum>], i: usize) -> Result<Option<&Tensor>, OpError> {
    match inputs.get(i) {
        None | Some(None) => Ok(None),
        Some(Some(Datum::Tensor(tensor))) => Ok(Some(tensor)),
        Some(Some(other)) => {
            Err(OpError::Invalid(format!("input {i} is {}, not a tensor", other.kind())))
        }
    }
}

/// The one element of a `bool` tensor.
fn truth(tensor: &Tensor) -> Result<bool, OpError> {
    match bools(tensor)? {
        [one] => Ok(*one != 0),
        many => Err(OpError::Invalid(format!("a condition of {} elements", many.len()))),
    }
}

/// ONNX Loop 1, 11, 13, 16, 19, 21, 23, 24 and 25.
pub(crate) static LOOP: OpDef = OpDef {
    op_type: "Loop",
    domain: "",
    versions: &[1, 11, 13, 16, 19, 21, 23, 24, 25],
    attrs: &["body"],
    infer: infer_loop,
    eval: Eval::Bodies(run_loop),
    role: ROLE,
};

fn run_loop(
    ctx: &EvalCtx<'_>,
    inputs: Vec<Option<Datum>>,
    bodies: &dyn Bodies,
) -> Result<Vec<Datum>, OpError> {
    let trips = match tensor(&inputs, 0)?.map(indices).transpose()?.as_deref() {
        None => i64::MAX,
        Some(&[n]) => n,
        Some(many) => return Err(OpError::Invalid(format!("{} trip counts", many.len()))),
    };
    let condition = tensor(&inputs, 1)?.map(truth).transpose()?;
    let mut carried: Vec<Datum> =
        inputs.into_iter().skip(2).map(|x| x.unwrap_or(Datum::Empty)).collect();
    let n_carried = carried.len();
    let mut scans: Vec<Vec<Tensor>> = Vec::new();
    let (mut i, mut goes_on) = (0, condition.unwrap_or(true));
    while i < trips && goes_on {
        let state = [Tensor::scalar(i).into(), bool_scalar(goes_on)?.into()];
        let mut outputs = bodies.run("body", state.into_iter().chain(carried).collect())?;
        if outputs.len() <= n_carried {
            return Err(OpError::Invalid(format!(
                "a body of {} outputs for {n_carried} carried values",
                outputs.len()
            )));
        }
        scans.resize_with(outputs.len() - 1 - n_carried, Vec::new);
        for (scan, output) in scans.iter_mut().zip(outputs.drain(1 + n_carried..)) {
            scan.push(output.into_tensor()?);
        }
        carried = outputs.split_off(1);
        goes_on = truth(outputs.remove(0).as_tensor().ok_or(OpError::MissingInput(1))?)?;
        i += 1;
    }
    if i <= 0 {
        let types = bodies.outputs("body")?;
        for ty in types.iter().skip(1 + n_carried) {
            carried.push(nothing_stacked(ty.as_ref(), 0)?.into());
        }
        return Ok(carried);
    }
    for scan in scans {
        carried.push(stacked(ctx, &scan, 0)?.into());
    }
    Ok(carried)
}

fn bool_scalar(value: bool) -> Result<Tensor, OpError> {
    Ok(Tensor::scalar(u8::from(value)).with_dtype(midtread_graph::DataType::Bool)?)
}

/// What is stacked when a body did not run even once. A size that its type does not tell is 0.
fn nothing_stacked(ty: Option<&Type>, axis: usize) -> Result<Tensor, OpError> {
    let elem = ty.and_then(Type::elem).unwrap_or(midtread_graph::DataType::Float);
    let dims = ty.and_then(Type::dims).unwrap_or_default();
    let mut dims: Vec<usize> = dims.iter().map(|d| d.known().unwrap_or(0)).collect();
    dims.insert(axis.min(dims.len()), 0);
    if elem == midtread_graph::DataType::String {
        return Ok(Tensor::from_strings(dims, Vec::new())?);
    }
    Ok(Tensor::zeros(elem, dims)?)
}

fn infer_loop(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    use midtread_graph::DataType::{Bool, Int64};
    let scalar = |elem| Info::new(Some(elem), Some(Vec::new()));
    let mut carried: Vec<Info> =
        (2..ctx.n_inputs()).map(|i| ctx.input(i).map(varying).unwrap_or_default()).collect();
    let n_carried = carried.len();
    // What holds before the first and after every trip. Each round forgets something, or is the last.
    let mut outputs = Vec::new();
    for _ in 0..8 {
        let state = [scalar(Int64), scalar(Bool)].into_iter().chain(carried.iter().cloned());
        outputs = ctx.body("body", state.collect());
        let after = outputs.iter().skip(1).take(n_carried);
        let common: Vec<Info> =
            carried.iter().zip(after).map(|(a, b)| a.common(&varying(b))).collect();
        if common.len() < n_carried {
            return Ok(());
        }
        if common == carried {
            break;
        }
        carried = common;
    }
    let trips = ctx.value(0).filter(|v| v.len() == 1).map(|mut v| v.remove(0));
    let endless = ctx.input(1).is_none();
    // A condition may end it before.
    let n =
        trips.filter(|_| endless && always_goes_on(ctx.node)).unwrap_or_else(|| ctx.fresh_symbol());
    let scans: Vec<Info> =
        outputs.iter().skip(1 + n_carried).map(|info| stacked_info(info, 0, n.clone())).collect();
    for (i, info) in carried.into_iter().chain(scans).enumerate() {
        ctx.set_info(i, info);
    }
    Ok(())
}

/// Whether the body hands its condition through, so that only the count ends the loop.
fn always_goes_on(node: &Node) -> bool {
    let Some(midtread_graph::AttrValue::Graph(body)) = node.attr("body") else { return false };
    let (Some(&given), Some(&handed)) = (body.inputs.get(1), body.outputs.first()) else {
        return false;
    };
    match body.nodes.iter().find(|n| n.outputs.contains(&Some(handed))) {
        None => given == handed,
        Some(n) => n.is("Identity") && n.input(0) == Some(given),
    }
}

/// What is known of a value that changes from trip to trip: not its elements.
fn varying(info: &Info) -> Info {
    Info { value: None, constant: None, ..info.clone() }
}

/// A tensor stacked `n` times along a new axis.
fn stacked_info(info: &Info, axis: usize, n: SymDim) -> Info {
    let dims = info.dims.clone().map(|mut dims| {
        dims.insert(axis.min(dims.len()), n);
        dims
    });
    Info::new(info.elem, dims)
}

/// ONNX Scan 8 (a batch, and lengths of sequences), 9, 11, 16, 19, 21, 23, 24 and 25.
pub(crate) static SCAN: OpDef = OpDef {
    op_type: "Scan",
    domain: "",
    versions: &[8, 9, 11, 16, 19, 21, 23, 24, 25],
    attrs: &[
        "body",
        "directions",
        "num_scan_inputs",
        "scan_input_axes",
        "scan_input_directions",
        "scan_output_axes",
        "scan_output_directions",
    ],
    infer: infer_scan,
    eval: Eval::Bodies(|ctx, inputs, bodies| {
        let tensors = inputs.into_iter().map(|x| x.map(Datum::into_tensor).transpose());
        let tensors: Vec<Option<Tensor>> = tensors.collect::<Result<_, _>>()?;
        let outputs =
            if ctx.opset < 9 { scan_8(ctx, tensors, bodies) } else { scan(ctx, tensors, bodies) };
        Ok(outputs?.into_iter().map(Datum::Tensor).collect())
    }),
    role: ROLE,
};

/// Where a Scan walks: for each scanned input or output the axis and whether from the end.
fn walks(
    node: &Node,
    axes: &'static str,
    directions: &'static str,
    n: usize,
) -> Result<Vec<(i64, bool)>, OpError> {
    let list = |name: &'static str| -> Result<Vec<i64>, OpError> {
        let list = attr::ints(node, name)?.map_or_else(|| vec![0; n], <[i64]>::to_vec);
        if list.len() == n {
            return Ok(list);
        }
        Err(OpError::Invalid(format!("`{name}` has {} elements for {n} values", list.len())))
    };
    Ok(list(axes)?.into_iter().zip(list(directions)?).map(|(a, d)| (a, d != 0)).collect())
}

fn n_scanned(node: &Node, n_inputs: usize) -> Result<usize, OpError> {
    let n = attr::size(node, "num_scan_inputs", 0)?;
    if n == 0 || n_inputs < n {
        return Err(OpError::Invalid(format!("`num_scan_inputs` is {n} of {n_inputs} inputs")));
    }
    Ok(n)
}

fn scan(
    ctx: &EvalCtx<'_>,
    inputs: Vec<Option<Tensor>>,
    bodies: &dyn Bodies,
) -> Result<Vec<Tensor>, OpError> {
    let mut states: Vec<Tensor> = inputs
        .into_iter()
        .enumerate()
        .map(|(i, x)| x.ok_or(OpError::MissingInput(i)))
        .collect::<Result<_, _>>()?;
    let n = n_scanned(ctx.node, states.len())?;
    let scanned = states.split_off(states.len() - n);
    let walks_in = walks(ctx.node, "scan_input_axes", "scan_input_directions", n)?;
    scan_over(ctx, states, &scanned, &walks_in, bodies)
}

fn scan_over(
    ctx: &EvalCtx<'_>,
    mut states: Vec<Tensor>,
    scanned: &[Tensor],
    walks_in: &[(i64, bool)],
    bodies: &dyn Bodies,
) -> Result<Vec<Tensor>, OpError> {
    let axes = scanned.iter().zip(walks_in).map(|(x, &(a, _))| normalize_axis(a, x.dims().len()));
    let axes: Vec<usize> = axes.collect::<Result<_, _>>()?;
    let len = scanned.first().zip(axes.first()).map_or(0, |(x, &axis)| x.dims()[axis]);
    if scanned.iter().zip(&axes).any(|(x, &axis)| x.dims()[axis] != len) {
        return Err(OpError::Invalid("scanned inputs differ in length".to_owned()));
    }
    let n_states = states.len();
    let types = bodies.outputs("body")?;
    let n_out = types.len().checked_sub(n_states).ok_or_else(|| {
        OpError::Invalid(format!("a body of {} outputs for {n_states} states", types.len()))
    })?;
    let walks_out = walks(ctx.node, "scan_output_axes", "scan_output_directions", n_out)?;
    let mut collected: Vec<Vec<Tensor>> = vec![Vec::with_capacity(len); n_out];
    for t in 0..len {
        let mut args: Vec<Datum> = states.into_iter().map(Datum::Tensor).collect();
        for ((x, &axis), &(_, reversed)) in scanned.iter().zip(&axes).zip(walks_in) {
            args.push(entry(ctx, x, axis, if reversed { len - 1 - t } else { t })?.into());
        }
        let outputs = bodies.run("body", args)?;
        let outputs = outputs.into_iter().map(Datum::into_tensor).collect::<Result<Vec<_>, _>>()?;
        let mut outputs = outputs.into_iter();
        states = outputs.by_ref().take(n_states).collect();
        collected.iter_mut().zip(outputs).for_each(|(all, y)| all.push(y));
    }
    for ((mut all, &(axis, reversed)), ty) in
        collected.into_iter().zip(&walks_out).zip(types.iter().skip(n_states))
    {
        if reversed {
            all.reverse();
        }
        let rank = all.first().map_or_else(
            || ty.as_ref().and_then(Type::dims).map_or(0, <[Dim]>::len),
            |t| t.dims().len(),
        );
        let axis = normalize_axis(axis, rank + 1)?;
        states.push(if all.is_empty() {
            nothing_stacked(ty.as_ref(), axis)?
        } else {
            stacked(ctx, &all, axis)?
        });
    }
    Ok(states)
}

/// Scan 8: every input has a batch in front, and each sequence of the batch its own length.
fn scan_8(
    ctx: &EvalCtx<'_>,
    mut inputs: Vec<Option<Tensor>>,
    bodies: &dyn Bodies,
) -> Result<Vec<Tensor>, OpError> {
    let lens = inputs.remove(0).as_ref().map(indices).transpose()?;
    let mut states = inputs
        .into_iter()
        .enumerate()
        .map(|(i, x)| x.ok_or(OpError::MissingInput(i + 1)))
        .collect::<Result<Vec<_>, _>>()?;
    let n = n_scanned(ctx.node, states.len())?;
    let scanned = states.split_off(states.len() - n);
    let directions =
        attr::ints(ctx.node, "directions")?.map_or_else(|| vec![0; n], <[i64]>::to_vec);
    let walks_in: Vec<(i64, bool)> = directions.iter().map(|&d| (0, d != 0)).collect();
    let [batch, longest] = match scanned[0].dims() {
        [batch, longest, ..] => [*batch, *longest],
        dims => return Err(OpError::Invalid(format!("a scanned input of sizes {dims:?}"))),
    };
    let same = |x: &Tensor, n: usize| x.dims().len() >= n && x.dims()[0] == batch;
    if batch == 0
        || walks_in.len() != n
        || !states.iter().all(|x| same(x, 1))
        || !scanned.iter().all(|x| same(x, 2) && x.dims()[1] == longest)
        || lens.as_ref().is_some_and(|l| l.len() != batch)
    {
        return Err(OpError::Invalid("inputs of a scan that differ in batch or length".to_owned()));
    }
    let n_states = states.len();
    let mut all: Vec<Vec<Tensor>> = Vec::new();
    for b in 0..batch {
        let len = lens.as_ref().map_or(longest, |l| l[b].clamp(0, longest as i64) as usize);
        let own = states.iter().map(|x| entry(ctx, x, 0, b)).collect::<Result<Vec<_>, _>>()?;
        let parts =
            scanned.iter().map(|x| crate::gather::part(ctx, &entry(ctx, x, 0, b)?, 0, 0, len));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let mut outputs = scan_over(ctx, own, &parts, &walks_in, bodies)?;
        for y in outputs.iter_mut().skip(n_states).filter(|_| len < longest) {
            let mut rest = y.dims().to_vec();
            rest[0] = longest - len;
            *y = joined(ctx, &[y, &Tensor::zeros(y.dtype(), rest)?], 0)?;
        }
        all.resize_with(outputs.len(), Vec::new);
        all.iter_mut().zip(outputs).for_each(|(all, y)| all.push(y));
    }
    all.iter().map(|tensors| stacked(ctx, tensors, 0)).collect()
}

fn infer_scan(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    // Version 8 is what nobody writes any more: left to what the file says.
    if ctx.opset < 9 {
        return Ok(());
    }
    let n = n_scanned(ctx.node, ctx.n_inputs())?;
    let n_states = ctx.n_inputs() - n;
    let walks_in = walks(ctx.node, "scan_input_axes", "scan_input_directions", n)?;
    let mut states: Vec<Info> =
        (0..n_states).map(|i| ctx.input(i).map(varying).unwrap_or_default()).collect();
    let mut len = SymDim::Unknown;
    let mut entries = Vec::new();
    for (i, &(axis, _)) in (n_states..).zip(&walks_in) {
        let dims = match ctx.dims(i) {
            Some(dims) => {
                let mut dims = dims.to_vec();
                let own = dims.remove(normalize_axis(axis, dims.len())?);
                if len == SymDim::Unknown || own.as_known().is_some() {
                    len = own;
                }
                Some(dims)
            }
            None => None,
        };
        entries.push(Info::new(ctx.elem(i), dims));
    }
    let mut outputs = Vec::new();
    for _ in 0..8 {
        outputs = ctx.body("body", states.iter().chain(&entries).cloned().collect());
        if outputs.len() < n_states {
            return Ok(());
        }
        let common: Vec<Info> =
            states.iter().zip(&outputs).map(|(a, b)| a.common(&varying(b))).collect();
        if common == states {
            break;
        }
        states = common;
    }
    let walks_out =
        walks(ctx.node, "scan_output_axes", "scan_output_directions", outputs.len() - n_states)?;
    for (i, state) in states.into_iter().enumerate() {
        ctx.set_info(i, state);
    }
    for (i, (info, (axis, _))) in outputs.iter().skip(n_states).zip(walks_out).enumerate() {
        let axis = match &info.dims {
            Some(dims) => normalize_axis(axis, dims.len() + 1)?,
            None => 0,
        };
        ctx.set_info(n_states + i, stacked_info(info, axis, len.clone()));
    }
    Ok(())
}
