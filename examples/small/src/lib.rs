//! The network and how to ask it: `core` and `alloc` alone, as a device would have them.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{borrow::ToOwned, vec::Vec};

use midtread_engine::{Code, Elem, Fault, Machine, Session};

/// What `midtread compile` made, in the binary's read-only data.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

static PROGRAM: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/program.mtp")));

/// The network, ready to be asked.
pub struct Network {
    machine: Machine,
    session: Session,
}

impl Network {
    /// Reads the program that is in the binary.
    pub fn new() -> Result<Self, Fault> {
        let machine = Machine::new(Code::from_bytes((&PROGRAM.0).into())?)?;
        let session = Session::new(&machine)?;
        Ok(Self { machine, session })
    }

    /// Bytes of the program.
    pub fn n_bytes() -> usize {
        PROGRAM.0.len()
    }

    /// How many numbers a picture has.
    pub fn n_inputs(&self) -> usize {
        sizes(&self.machine).iter().product()
    }

    /// A score for each class. Allocates the list of them and nothing else, after the first time.
    pub fn scores(&mut self, picture: &[f32]) -> Result<Vec<f32>, Fault> {
        let dims = sizes(&self.machine);
        let input = self.session.input(&self.machine, 0, Elem::F32, &dims)?;
        let (input, _) = input.as_chunks_mut::<4>();
        if input.len() != picture.len() {
            let what = "a picture of another size".to_owned();
            return Err(Fault { what, node: None });
        }
        for (bytes, x) in input.iter_mut().zip(picture) {
            *bytes = x.to_le_bytes();
        }
        self.session.run(&self.machine)?;
        let output = self.session.output(&self.machine, 0);
        let bytes = output.map_or(&[][..], |view| view.bytes);
        Ok(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
    }
}

/// Sizes of the input, one picture.
fn sizes(machine: &Machine) -> Vec<usize> {
    use midtread_engine::code::Size;
    let dims = machine.inputs().first().and_then(|port| port.dims.as_deref()).unwrap_or_default();
    dims.iter().map(|size| if let Size::Known(n) = size { *n } else { 1 }).collect()
}
