//! A compiled model and its runs on tensors.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use midtread_exec::Port;
use midtread_graph::{DataType, Dim, Model, Tensor, Type};
use midtread_ops::Pool;

use crate::{
    code::{self, Code, Size},
    error::Error,
    fault::Fault,
    host::{Operators, Tensors},
    lower,
    machine::{Machine, Session, StepInfo},
};

/// How a model is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// From sums to codes.
    pub requantize: Requantize,
}

/// How sums become codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Requantize {
    /// A product in `f32`, rounded to even: as ONNX Runtime.
    #[default]
    Float,
    /// A multiplier of 31 bits and a shift ([`midtread_num::requant::Multiplier`]): for devices without a float unit.
    FixedPoint,
}

impl Requantize {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Float, Self::FixedPoint];

    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::FixedPoint => "fixed-point",
        }
    }
}

/// A model that is ready to run in integers.
///
/// Steps use the rayon pool that the caller is in (`pool.install(|| program.run(..))`).
pub struct Program {
    machine: Machine,
    operators: Operators,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// What runs need: one for each run there has been at the same time.
    runs: Mutex<Vec<(Session<Tensor>, Pool)>>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} steps)", self.machine.steps.len())
    }
}

impl Code {
    /// Finds the integer steps of a model.
    pub fn compile(model: &Model, options: &Options) -> Result<Self, Error> {
        lower::compile(model, options)
    }
}

impl Program {
    /// Finds the integer steps of a model and packs their weights.
    pub fn compile(model: &Model, options: &Options) -> Result<Self, Error> {
        Self::new(Code::compile(model, options)?)
    }

    /// Checks a compiled model and packs its weights.
    pub fn new(code: Code) -> Result<Self, Error> {
        let operators = Operators::new(&code)?;
        let (inputs, outputs) = (ports(&code, &code.inputs), ports(&code, &code.outputs));
        let machine = Machine::new(code)?;
        Ok(Self { machine, operators, inputs, outputs, runs: Mutex::default() })
    }

    /// From what [`Code::to_bytes`] made.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Error> {
        Self::new(Code::from_bytes(bytes)?)
    }

    /// The inputs, in the model's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the model's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// What is computed how, in the order of a run.
    pub fn steps(&self) -> impl Iterator<Item = StepInfo> {
        self.machine.steps()
    }

    /// Bytes of the arenas of the runs that there have been at the same time.
    pub fn arena_bytes(&self) -> usize {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.iter().map(|(session, _)| session.arena_bytes()).sum()
    }

    /// Runs the program: names and tensors of the inputs in, of the outputs out, in the model's order.
    pub fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, Error> {
        self.run_watched(inputs, &mut |_, _| {})
    }

    /// Like [`Program::run`], and calls `watch` with the index of every step and the time it took.
    pub fn run_watched(
        &self,
        inputs: Vec<(String, Tensor)>,
        watch: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<(String, Tensor)>, Error> {
        midtread_exec::check_inputs(&self.inputs, &inputs)?;
        let run = self.runs.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut session, pool) = match run {
            Some(run) => run,
            None => (Session::new(&self.machine)?, Pool::default()),
        };
        let result = self.run_in(&mut session, &pool, inputs, watch);
        session.clear();
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push((session, pool));
        Ok(result?)
    }

    fn run_in(
        &self,
        session: &mut Session<Tensor>,
        pool: &Pool,
        inputs: Vec<(String, Tensor)>,
        watch: &mut dyn FnMut(usize, Duration),
    ) -> Result<Vec<(String, Tensor)>, Fault> {
        let machine = &self.machine;
        let host = Tensors { operators: &self.operators, pool };
        let mut start = Instant::now();
        let given = inputs.into_iter().map(|(name, tensor)| {
            let port = machine.inputs.iter().find(|port| port.name == name);
            (port.expect("checked to be an input").value, tensor.to_aligned())
        });
        session.run_with(machine, &host, given.collect(), &mut |step| {
            let end = Instant::now();
            watch(step, end - start);
            start = end;
        })?;
        let outputs = machine.outputs.iter().enumerate().map(|(i, port)| {
            let held = session.take_output(machine, i);
            let tensor = held.or_else(|| self.operators.constant(port.value));
            let tensor =
                tensor.ok_or_else(|| Fault::new(format!("output `{}` is not made", port.name)));
            Ok((port.name.clone(), tensor?))
        });
        outputs.collect()
    }
}

fn ports(code: &Code, ports: &[code::Port]) -> Vec<Port> {
    let dim = |size: &Size| match size {
        Size::Known(n) => Dim::Known(*n),
        Size::Named(name) => Dim::Symbol(name.clone()),
        Size::Unknown => Dim::Unknown,
    };
    let port = |port: &code::Port| Port {
        name: port.name.clone(),
        ty: DataType::from_onnx(port.elem).map(|elem| {
            Type::tensor(elem, port.dims.as_ref().map(|dims| dims.iter().map(dim).collect()))
        }),
        has_default: code.constants.iter().any(|(value, _)| *value == port.value),
    };
    ports.iter().map(port).collect()
}
