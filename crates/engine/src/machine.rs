//! Runs a program.
//!
//! A [`Machine`] is a program whose weights are packed for this CPU; a [`Session`] holds the values of its runs: one
//! arena, in which every value has a place planned ahead from the sizes of the inputs. Where a size turns out larger
//! than planned, the value lies elsewhere in that run, and has its place from the next one on; so a run of sizes that
//! have been run before allocates nothing.

use alloc::{format, string::String, vec::Vec};

use midtread_kernels::quantized::Requant;

use crate::{
    arena::{Arena, Life, plan},
    code::{Code, Constant, Op, Port, Size},
    compute::{Dynamic, Ready, compute, output, ready},
    dims::Dims,
    fault::Fault,
};

/// The types of elements that steps compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// Unsigned codes.
    U8,
    /// Signed codes.
    I8,
    /// Numbers.
    F32,
}

impl Elem {
    /// Codes, signed or not.
    pub fn codes(is_signed: bool) -> Self {
        if is_signed { Self::I8 } else { Self::U8 }
    }

    /// Bytes of one.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::F32 => 4,
        }
    }

    /// As ONNX calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::F32 => "float32",
        }
    }

    /// By ONNX's number.
    pub fn from_onnx(number: i32) -> Option<Self> {
        match number {
            1 => Some(Self::F32),
            2 => Some(Self::U8),
            3 => Some(Self::I8),
            _ => None,
        }
    }
}

/// Type and sizes of a value as it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meta {
    /// Of each element.
    pub elem: Elem,
    /// As it is stored.
    pub dims: Dims,
}

impl Meta {
    fn n_bytes(&self) -> usize {
        self.dims.n_elements() * self.elem.n_bytes()
    }
}

/// A value that somebody else holds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its type and sizes.
    pub meta: Meta,
    /// Its elements.
    pub bytes: &'a [u8],
}

/// An operand of an operator.
pub enum Operand<'a, V> {
    /// The host's own.
    Own(V),
    /// A value of the session.
    View(View<'a>),
}

/// Whoever evaluates the operators that are not done in integers, on values of its own.
pub trait Host {
    /// A tensor.
    type Value: Clone;
    /// What is in one, if steps can read it.
    fn view<'a>(&self, value: &'a Self::Value) -> Result<View<'a>, Fault>;
    /// A constant of the program.
    fn constant(&self, value: u32) -> Option<Self::Value>;
    /// A new value for an operator to read, whose elements are to be written; `None` leaves it to the session.
    fn make(&self, meta: &Meta) -> Result<Option<Self::Value>, Fault>;
    /// The elements, to be written.
    fn bytes_mut<'a>(&self, value: &'a mut Self::Value) -> &'a mut [u8];
    /// Evaluates the operator of a step.
    fn call(
        &self,
        step: usize,
        inputs: Vec<Option<Operand<'_, Self::Value>>>,
    ) -> Result<Vec<Self::Value>, Fault>;
}

/// Nobody: for programs that are integer steps throughout.
#[derive(Clone, Copy, Debug)]
pub struct NoHost;

/// What [`NoHost`] holds: nothing.
#[derive(Clone, Copy, Debug)]
pub enum Never {}

impl Host for NoHost {
    type Value = Never;
    fn view<'a>(&self, value: &'a Never) -> Result<View<'a>, Fault> {
        match *value {}
    }
    fn constant(&self, _: u32) -> Option<Never> {
        None
    }
    fn make(&self, _: &Meta) -> Result<Option<Never>, Fault> {
        Ok(None)
    }
    fn bytes_mut<'a>(&self, value: &'a mut Never) -> &'a mut [u8] {
        match *value {}
    }
    fn call(&self, _: usize, _: Vec<Option<Operand<'_, Never>>>) -> Result<Vec<Never>, Fault> {
        Err(Fault::new("an operator that is not done in integers, and nobody to evaluate it"))
    }
}

/// A program that is ready to run.
pub struct Machine {
    /// Inputs by position.
    pub(crate) inputs: Vec<Port>,
    /// Outputs by position.
    pub(crate) outputs: Vec<Port>,
    pub(crate) steps: Vec<ReadyStep>,
    n_values: usize,
    /// By value.
    constants: Vec<Option<Constant>>,
    /// Values that operators read, or the caller: the host makes them, so that nothing is copied.
    is_hosts: Vec<bool>,
    /// By value.
    is_inputs: Vec<bool>,
    /// By value: from the step that makes it to after the last that reads it.
    lives: Vec<core::ops::Range<usize>>,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// The node whose attributes the step has.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// How it is computed: "integer convolution", or "operator" for what the interpreter does.
    pub kind: &'static str,
    /// Why it is not computed in integers; empty where it is.
    pub why: String,
}

/// A step and what was made ready for it.
pub(crate) struct ReadyStep {
    pub(crate) node: String,
    pub(crate) op_type: String,
    pub(crate) why: String,
    pub(crate) kind: &'static str,
    pub(crate) inputs: Vec<Option<u32>>,
    pub(crate) outputs: Vec<Option<u32>>,
    /// For each input: whether nothing reads the value afterwards.
    is_last_use: Vec<bool>,
    pub(crate) ready: Ready,
}

impl Machine {
    /// Checks a program and packs its weights.
    pub fn new(code: Code) -> Result<Self, Fault> {
        let n_values = code.n_values as usize;
        code.check_values()?;
        let mut constants: Vec<Option<Constant>> = alloc::vec![None; n_values];
        let mut is_made = alloc::vec![false; n_values];
        for (value, constant) in code.constants {
            let i = value as usize;
            if n_values <= i || constants[i].is_some() {
                return Err(Fault::new(format!("constant {value} of {n_values} values")));
            }
            check_constant(&constant)?;
            constants[i] = Some(constant);
            is_made[i] = true;
        }
        let mut is_inputs = alloc::vec![false; n_values];
        for port in &code.inputs {
            let made = is_made.get_mut(port.value as usize);
            *made.ok_or_else(|| Fault::new(format!("input `{}` is no value", port.name)))? = true;
            is_inputs[port.value as usize] = true;
        }
        let mut lives = alloc::vec![0..0; n_values];
        let mut is_hosts = alloc::vec![false; n_values];
        let n_steps = code.steps.len();
        let mut steps = Vec::with_capacity(n_steps);
        for (i, step) in code.steps.into_iter().enumerate() {
            let (node, op_type) = (step.node.clone(), step.op_type.clone());
            let at = |fault: Fault| fault.at(&node, &op_type);
            for &id in step.inputs.iter().flatten() {
                if is_made.get(id as usize) != Some(&true) {
                    return Err(at(Fault::new(format!("value {id} is read before it is made"))));
                }
                lives[id as usize].end = i + 1;
                is_hosts[id as usize] |= matches!(step.op, Op::Operator(_));
            }
            for &id in step.outputs.iter().flatten() {
                if is_made.get(id as usize) != Some(&false) {
                    return Err(at(Fault::new(format!("value {id} is made twice"))));
                }
                is_made[id as usize] = true;
                lives[id as usize] = i..i + 1;
            }
            let kind = step.op.kind();
            let ready = ready(step.op, step.inputs.len()).map_err(at)?;
            steps.push(ReadyStep {
                is_last_use: alloc::vec![false; step.inputs.len()],
                node,
                op_type,
                why: step.why,
                kind,
                inputs: step.inputs,
                outputs: step.outputs,
                ready,
            });
        }
        for port in &code.outputs {
            if is_made.get(port.value as usize) != Some(&true) {
                return Err(Fault::new(format!("output `{}` is never made", port.name)));
            }
            lives[port.value as usize].end = n_steps + 1;
            is_hosts[port.value as usize] = true;
        }
        let mut used = alloc::vec![false; n_values];
        code.outputs.iter().for_each(|port| used[port.value as usize] = true);
        for step in steps.iter_mut().rev() {
            for (is_last, id) in step.is_last_use.iter_mut().zip(&step.inputs).rev() {
                *is_last = id.is_some_and(|id| !core::mem::replace(&mut used[id as usize], true));
            }
        }
        let (inputs, outputs) = (code.inputs, code.outputs);
        Ok(Self { inputs, outputs, steps, n_values, constants, is_hosts, is_inputs, lives })
    }

    /// What is given, by position.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What is made, by position.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// What is computed how, in the order of a run.
    pub fn steps(&self) -> impl Iterator<Item = StepInfo> {
        self.steps.iter().map(|step| StepInfo {
            node: step.node.clone(),
            op_type: step.op_type.clone(),
            kind: step.kind,
            why: step.why.clone(),
        })
    }

    /// How many steps need a [`Host`].
    pub fn n_operators(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.ready, Ready::Operator)).count()
    }

    pub(crate) fn constant(&self, value: u32) -> Option<&Constant> {
        self.constants[value as usize].as_ref()
    }
}

/// Values of runs, which take place one after the other.
pub struct Session<V = Never> {
    arena: Arena,
    /// By value: where it lies in the arena, and how many bytes it may have there.
    places: Vec<(usize, usize)>,
    /// By value: memory of its own, until the arena is planned anew.
    spills: Vec<Arena>,
    /// By value: the most bytes it has had.
    needed: Vec<usize>,
    is_stale: bool,
    values: Vec<Held<V>>,
    /// By value: scale and zero point of codes whose range was found in the run.
    params: Vec<(f32, u8)>,
    /// By step: what requantizes a dynamic product.
    requants: Vec<Option<Requant>>,
}

/// Where a value is.
enum Held<V> {
    Nowhere,
    /// At this offset of the arena.
    Arena(Meta, usize),
    Spill(Meta),
    Host(V),
}

impl<V: Clone> Session<V> {
    /// Plans the arena for the sizes that the inputs are said to have, 1 where they are not.
    pub fn new(machine: &Machine) -> Result<Self, Fault> {
        let n = machine.n_values;
        let requants = machine.steps.iter().map(|step| match &step.ready {
            Ready::DynamicProduct { requant, .. } | Ready::DynamicConv { requant, .. } => {
                Some(requant.clone())
            }
            _ => None,
        });
        let mut session = Self {
            arena: Arena::default(),
            places: alloc::vec![(0, 0); n],
            spills: (0..n).map(|_| Arena::default()).collect(),
            needed: alloc::vec![0; n],
            is_stale: false,
            values: (0..n).map(|_| Held::Nowhere).collect(),
            params: alloc::vec![(1.0, 0); n],
            requants: requants.collect(),
        };
        session.foresee(machine);
        session.settle(machine)?;
        Ok(session)
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> usize {
        self.arena.n_bytes()
    }

    /// What follows from the inputs' sizes as far as no operator is in between.
    fn foresee(&mut self, machine: &Machine) {
        let mut metas: Vec<Option<Meta>> = alloc::vec![None; machine.n_values];
        for (value, constant) in machine.constants.iter().enumerate() {
            metas[value] = constant.as_ref().and_then(|c| constant_view(c).ok()).map(|v| v.meta);
        }
        for port in &machine.inputs {
            let meta =
                Elem::from_onnx(port.elem).zip(port.dims.as_ref()).and_then(|(elem, dims)| {
                    let size = |size: &Size| if let Size::Known(n) = size { *n } else { 1 };
                    let sizes: Vec<usize> = dims.iter().map(size).collect();
                    Some(Meta { elem, dims: Dims::new(&sizes).ok()? })
                });
            metas[port.value as usize] = meta;
        }
        for step in &machine.steps {
            let unknown = || Fault::new("unknown");
            let input = |i: usize| {
                let id = step.inputs.get(i).copied().flatten().ok_or_else(unknown)?;
                metas[id as usize].ok_or_else(unknown)
            };
            let Some(&Some(id)) = step.outputs.first() else { continue };
            let meta = output(&step.ready, step.inputs.len(), &input).ok().flatten();
            metas[id as usize] = meta;
            if let Some(meta) = meta {
                self.need(id, meta.n_bytes());
            }
        }
    }

    fn need(&mut self, id: u32, n_bytes: usize) {
        let needed = &mut self.needed[id as usize];
        if *needed < n_bytes {
            *needed = n_bytes;
            self.is_stale = true;
        }
    }

    /// Plans the arena anew, where it was too small. No value lives on.
    fn settle(&mut self, machine: &Machine) -> Result<(), Fault> {
        if !self.is_stale {
            return Ok(());
        }
        let lives: Vec<Life> = (self.needed.iter().zip(&machine.lives))
            .map(|(&n_bytes, steps)| Life { n_bytes, steps: steps.clone() })
            .collect();
        let (offsets, total) = plan(&lives);
        self.arena.grow(total)?;
        self.places = offsets.into_iter().zip(self.needed.iter().copied()).collect();
        for (i, spill) in self.spills.iter_mut().enumerate().filter(|(i, _)| !machine.is_inputs[*i])
        {
            *spill = Arena::default();
            self.values[i] = Held::Nowhere;
        }
        self.is_stale = false;
        Ok(())
    }

    /// The elements of an input, to be written before a run.
    ///
    /// # Errors
    ///
    /// Where the program says that the input has another type or other sizes, or the memory cannot be had.
    pub fn input(
        &mut self,
        machine: &Machine,
        i: usize,
        elem: Elem,
        sizes: &[usize],
    ) -> Result<&mut [u8], Fault> {
        let port = machine.inputs.get(i).ok_or_else(|| Fault::new(format!("no input {i}")))?;
        let meta = Meta { elem, dims: Dims::new(sizes)? };
        let is_elem = port.elem == 0 || Elem::from_onnx(port.elem) == Some(elem);
        let fits = port.dims.as_ref().is_none_or(|dims| {
            let fits = |(size, &n): (&Size, &usize)| !matches!(size, Size::Known(k) if *k != n);
            dims.len() == sizes.len() && dims.iter().zip(sizes).all(fits)
        });
        if !is_elem || !fits {
            return Err(Fault::new(format!(
                "input `{}` is {}{sizes:?}, and the model takes {:?} of ONNX type {}",
                port.name,
                elem.name(),
                port.dims,
                port.elem
            )));
        }
        let id = port.value as usize;
        self.spills[id].grow(meta.n_bytes())?;
        self.values[id] = Held::Spill(meta);
        Ok(&mut self.spills[id].bytes_mut()[..meta.n_bytes()])
    }

    /// Runs the program on what [`Session::input`] gave.
    pub fn run(&mut self, machine: &Machine) -> Result<(), Fault>
    where
        NoHost: Host<Value = V>,
    {
        self.run_with(machine, &NoHost, Vec::new(), &mut |_| {})
    }

    /// Runs the program: values of inputs that the host holds, by number, and what it is told after each step.
    pub(crate) fn run_with<H: Host<Value = V>>(
        &mut self,
        machine: &Machine,
        host: &H,
        inputs: Vec<(u32, V)>,
        watch: &mut dyn FnMut(usize),
    ) -> Result<(), Fault> {
        self.settle(machine)?;
        for (id, value) in inputs {
            self.values[id as usize] = Held::Host(value);
        }
        for port in &machine.inputs {
            let id = port.value as usize;
            if matches!(self.values[id], Held::Nowhere) && machine.constants[id].is_none() {
                return Err(Fault::new(format!("input `{}` is not given", port.name)));
            }
        }
        for (i, step) in machine.steps.iter().enumerate() {
            let result = match &step.ready {
                Ready::Operator => self.operator(machine, host, i),
                _ => self.native(machine, host, i),
            };
            result.map_err(|fault| fault.at(&step.node, &step.op_type))?;
            watch(i);
            for (id, &is_last) in step.inputs.iter().zip(&step.is_last_use) {
                // What the host holds goes back to it as soon as it can.
                if let (Some(id), true) = (id, is_last)
                    && let Held::Host(_) = self.values[*id as usize]
                {
                    self.values[*id as usize] = Held::Nowhere;
                }
            }
        }
        Ok(())
    }

    fn operator<H: Host<Value = V>>(
        &mut self,
        machine: &Machine,
        host: &H,
        i: usize,
    ) -> Result<(), Fault> {
        let step = &machine.steps[i];
        let mut own: Vec<Option<V>> = Vec::with_capacity(step.inputs.len());
        for (id, &is_last) in step.inputs.iter().zip(&step.is_last_use) {
            let Some(id) = *id else {
                own.push(None);
                continue;
            };
            let held = &mut self.values[id as usize];
            own.push(match held {
                Held::Host(_) if is_last => match core::mem::replace(held, Held::Nowhere) {
                    Held::Host(value) => Some(value),
                    _ => None,
                },
                Held::Host(value) => Some(value.clone()),
                Held::Nowhere => host.constant(id),
                _ => None,
            });
        }
        let values = Values {
            left: self.arena.bytes(),
            right: (0, &[]),
            spills: &self.spills,
            values: &self.values,
            machine,
            host,
        };
        let inputs = step.inputs.iter().zip(own).map(|(id, own)| match (id, own) {
            (None, _) => Ok(None),
            (_, Some(value)) => Ok(Some(Operand::Own(value))),
            (Some(id), None) => Ok(Some(Operand::View(values.get(*id)?))),
        });
        let outputs = host.call(i, inputs.collect::<Result<_, _>>()?)?;
        if outputs.len() < step.outputs.iter().flatten().count().min(step.outputs.len()) {
            return Err(Fault::new("fewer outputs than are wanted"));
        }
        for (value, id) in outputs.into_iter().zip(&step.outputs) {
            if let Some(id) = id {
                self.values[*id as usize] = Held::Host(value);
            }
        }
        Ok(())
    }

    fn native<H: Host<Value = V>>(
        &mut self,
        machine: &Machine,
        host: &H,
        i: usize,
    ) -> Result<(), Fault> {
        let step = &machine.steps[i];
        let Some(&Some(id)) = step.outputs.first() else {
            return Err(Fault::new("a step without an output"));
        };
        let all = Values {
            left: self.arena.bytes(),
            right: (0, &[]),
            spills: &self.spills,
            values: &self.values,
            machine,
            host,
        };
        let input = |j: usize| Ok(all.input(step, j)?.meta);
        let meta = output(&step.ready, step.inputs.len(), &input)?
            .ok_or_else(|| Fault::new("an operator as a step"))?;
        let n_bytes = meta.n_bytes();
        let mut made = if machine.is_hosts[id as usize] { host.make(&meta)? } else { None };
        if made.is_none() {
            self.need(id, n_bytes);
        }
        let (at, room) = self.places[id as usize];
        let is_planned = 0 < n_bytes && n_bytes <= room;
        let mut spill = Arena::default();
        let (left, out, right) = match &mut made {
            Some(value) => (self.arena.bytes(), host.bytes_mut(value), (0, &[][..])),
            None if is_planned => {
                let (left, rest) = self.arena.bytes_mut().split_at_mut(at);
                let (out, right) = rest.split_at_mut(n_bytes);
                (&*left, out, (at + n_bytes, &*right))
            }
            None => {
                spill = core::mem::take(&mut self.spills[id as usize]);
                spill.grow(n_bytes)?;
                (self.arena.bytes(), &mut spill.bytes_mut()[..n_bytes], (0, &[][..]))
            }
        };
        if out.len() != n_bytes {
            return Err(Fault::new("a place of another size"));
        }
        let values =
            Values { left, right, spills: &self.spills, values: &self.values, machine, host };
        let dynamic = Dynamic {
            of: step
                .inputs
                .first()
                .copied()
                .flatten()
                .map_or((1.0, 0), |x| self.params[x as usize]),
            requant: self.requants[i].as_mut(),
        };
        let input = |j: usize| values.input(step, j);
        let params = compute(&step.ready, step.inputs.len(), &input, &meta.dims, out, dynamic)?;
        if let Some(params) = params {
            self.params[id as usize] = params;
        }
        self.values[id as usize] = match made {
            Some(value) => Held::Host(value),
            None if is_planned => Held::Arena(meta, at),
            None => {
                self.spills[id as usize] = spill;
                Held::Spill(meta)
            }
        };
        Ok(())
    }

    /// An output of the last run that is in the session.
    pub fn output(&self, machine: &Machine, i: usize) -> Option<View<'_>> {
        let id = machine.outputs.get(i)?.value as usize;
        match self.values[id] {
            Held::Arena(meta, at) => {
                Some(View { meta, bytes: self.arena.bytes().get(at..at + meta.n_bytes())? })
            }
            Held::Spill(meta) => {
                Some(View { meta, bytes: self.spills[id].bytes().get(..meta.n_bytes())? })
            }
            Held::Host(_) | Held::Nowhere => None,
        }
    }

    /// An output of the last run that the host holds.
    #[cfg(feature = "std")]
    pub(crate) fn take_output(&mut self, machine: &Machine, i: usize) -> Option<V> {
        match &self.values[machine.outputs[i].value as usize] {
            Held::Host(value) => Some(value.clone()),
            _ => None,
        }
    }

    #[cfg(feature = "std")]
    /// Forgets every value, so that the host gets back what it holds.
    pub(crate) fn clear(&mut self) {
        self.values.iter_mut().for_each(|held| *held = Held::Nowhere);
    }
}

/// The values of a session while one of them is written.
struct Values<'a, V, H> {
    /// The arena up to the value that is written, and what is behind it with its place.
    left: &'a [u8],
    right: (usize, &'a [u8]),
    spills: &'a [Arena],
    values: &'a [Held<V>],
    machine: &'a Machine,
    host: &'a H,
}

impl<'a, V: Clone, H: Host<Value = V>> Values<'a, V, H> {
    fn input(&self, step: &ReadyStep, i: usize) -> Result<View<'a>, Fault> {
        let id = step.inputs.get(i).copied().flatten();
        self.get(id.ok_or_else(|| Fault::new(format!("input {i} is missing")))?)
    }

    fn get(&self, id: u32) -> Result<View<'a>, Fault> {
        let lost = || Fault::new(format!("value {id} is not there"));
        match &self.values[id as usize] {
            Held::Arena(meta, at) => {
                let range = *at..at + meta.n_bytes();
                let bytes = match at.checked_sub(self.right.0) {
                    Some(from) if 0 < self.right.0 => self.right.1.get(from..from + meta.n_bytes()),
                    _ => self.left.get(range),
                };
                Ok(View { meta: *meta, bytes: bytes.ok_or_else(lost)? })
            }
            Held::Spill(meta) => {
                let bytes = self.spills[id as usize].bytes().get(..meta.n_bytes());
                Ok(View { meta: *meta, bytes: bytes.ok_or_else(lost)? })
            }
            Held::Host(value) => self.host.view(value),
            Held::Nowhere => constant_view(self.machine.constant(id).ok_or_else(lost)?),
        }
    }
}

/// What is in a constant, where steps can read it.
fn constant_view(constant: &Constant) -> Result<View<'_>, Fault> {
    let elem = Elem::from_onnx(constant.elem)
        .ok_or_else(|| Fault::new(format!("a constant of ONNX type {}", constant.elem)))?;
    let meta = Meta { elem, dims: Dims::new(&constant.dims)? };
    if constant.data.len() != meta.n_bytes() {
        return Err(Fault::new("a constant whose sizes are not its elements'"));
    }
    Ok(View { meta, bytes: &constant.data })
}

fn check_constant(constant: &Constant) -> Result<(), Fault> {
    match Elem::from_onnx(constant.elem) {
        Some(_) => constant_view(constant).map(|_| ()),
        // The host's affair.
        None => Ok(()),
    }
}
