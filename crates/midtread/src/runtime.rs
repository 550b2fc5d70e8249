//! What runs a model: the interpreter, which does exactly what ONNX says, or the engine, which runs quantized models in
//! integers.

use std::{path::Path, time::Duration};

use midtread_data::InputSpec;
use midtread_engine::{Code, Program};
pub use midtread_engine::{Options as EngineOptions, Requantize};
use midtread_exec::{Interpreter, Named, Options};
use midtread_graph::{DataType, Model, Tensor};

use crate::error::Error;

/// Which of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Node by node, as ONNX defines the operators.
    #[default]
    Interpreter,
    /// Integer kernels where the model is quantized.
    Engine,
    /// The same, from sums to codes without floating point.
    EngineFixedPoint,
}

impl Runtime {
    /// Those that options name. How the engine requantizes is an option of its own.
    pub const ALL: &'static [Self] = &[Self::Interpreter, Self::Engine];

    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interpreter => "interpreter",
            Self::Engine => "engine",
            Self::EngineFixedPoint => "engine fixed-point",
        }
    }

    /// The same runtime, requantizing so. The interpreter does what the model says.
    pub fn requantizing(self, requantize: Requantize) -> Self {
        match (self, requantize) {
            (Self::Interpreter, _) => Self::Interpreter,
            (_, Requantize::Float) => Self::Engine,
            (_, Requantize::FixedPoint) => Self::EngineFixedPoint,
        }
    }
}

/// What a file held.
#[derive(Debug)]
pub enum Loaded {
    /// An ONNX model.
    Model(Box<Model>),
    /// A program that `midtread compile` made of one.
    Program(Box<Code>),
}

impl Loaded {
    /// Reads a model or a compiled program, whichever it is.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let mut first = [0; 8];
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let n = std::io::Read::read(&mut file, &mut first).map_err(failed)?;
        if Code::is_program(&first[..n]) {
            let bytes = std::fs::read(path).map_err(failed)?;
            let code = Code::from_bytes(bytes.into());
            let code = code.map_err(|source| Error::Program { path: path.to_owned(), source })?;
            return Ok(Self::Program(Box::new(code)));
        }
        Ok(Self::Model(Box::new(midtread_onnx::load(path)?)))
    }

    /// What it takes.
    pub fn inputs(&self) -> Result<Vec<InputSpec>, Error> {
        let code = match self {
            Self::Model(model) => return Ok(InputSpec::of(model)?),
            Self::Program(code) => code,
        };
        let spec = |port: &midtread_engine::code::Port| -> Result<InputSpec, Error> {
            let dtype = DataType::from_onnx(port.elem).ok_or_else(|| {
                Error::Options(format!("input `{}` of the program has no element type", port.name))
            })?;
            let size = |size: &midtread_engine::code::Size| match size {
                midtread_engine::code::Size::Known(n) => Some(*n),
                _ => None,
            };
            Ok(InputSpec {
                name: port.name.clone(),
                dtype,
                dims: port.dims.as_ref().map(|dims| dims.iter().map(size).collect()),
                required: code.constants.iter().all(|(value, _)| *value != port.value),
            })
        };
        code.inputs.iter().map(spec).collect()
    }

    /// Makes it ready to run. A compiled program runs in the engine, as it was compiled.
    pub fn runner(&self, runtime: Runtime, max_bytes: Option<usize>) -> Result<Runner, Error> {
        match self {
            Self::Model(model) => Runner::new(model, runtime, max_bytes),
            Self::Program(code) if runtime == Runtime::Interpreter => {
                let _ = code;
                Err(Error::Options(
                    "a compiled program runs in the engine: give the model to the interpreter"
                        .into(),
                ))
            }
            Self::Program(code) => {
                Ok(Runner::Engine(Box::new(Program::new(code.as_ref().clone())?)))
            }
        }
    }
}

/// A model that is ready to run.
#[derive(Debug)]
pub enum Runner {
    /// By the interpreter.
    Interpreter(Box<Interpreter>),
    /// By the engine.
    Engine(Box<Program>),
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PartTime {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Types and sizes of its inputs, or how the engine computes it.
    pub detail: String,
    /// Whether it computes on codes.
    pub is_integer: bool,
    /// How long it took.
    pub time: Duration,
}

impl Runner {
    /// Prepares a model. `max_bytes` bounds the values that the interpreter holds.
    pub fn new(model: &Model, runtime: Runtime, max_bytes: Option<usize>) -> Result<Self, Error> {
        Ok(match runtime {
            Runtime::Interpreter => Self::Interpreter(Box::new(
                Interpreter::new(model, Options { max_bytes }).map_err(Error::Run)?,
            )),
            Runtime::Engine => {
                Self::Engine(Box::new(Program::compile(model, &EngineOptions::default())?))
            }
            Runtime::EngineFixedPoint => {
                let options = EngineOptions { requantize: Requantize::FixedPoint };
                Self::Engine(Box::new(Program::compile(model, &options)?))
            }
        })
    }

    /// Runs the model: names and tensors of the inputs in, of the outputs out.
    pub fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Named, Error> {
        match self {
            Self::Interpreter(interpreter) => interpreter.run(inputs).map_err(Error::Run),
            Self::Engine(program) => Ok(program.run(inputs)?),
        }
    }

    /// Runs the model once and says how long each part took.
    pub fn run_profiled(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<PartTime>, Error> {
        match self {
            Self::Interpreter(interpreter) => {
                let (_, nodes) = interpreter.run_profiled(inputs).map_err(Error::Run)?;
                let part = |n: midtread_exec::NodeTime| PartTime {
                    node: n.node,
                    op_type: n.op_type,
                    detail: n.inputs,
                    is_integer: false,
                    time: n.time,
                };
                Ok(nodes.into_iter().map(part).collect())
            }
            Self::Engine(program) => {
                let mut times = Vec::new();
                program.run_watched(inputs, &mut |_, time| times.push(time))?;
                let part = |(step, time): (midtread_engine::StepInfo, Duration)| PartTime {
                    node: step.node,
                    op_type: step.op_type,
                    detail: step.kind.to_owned(),
                    is_integer: step.kind != "operator",
                    time,
                };
                Ok(program.steps().zip(times).map(part).collect())
            }
        }
    }
}
