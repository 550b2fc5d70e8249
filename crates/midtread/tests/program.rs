//! Compiled programs: saved, read, changed, and run without an allocation.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::AtomicBool,
};

use midtread::{
    EngineOptions, Format, Options, PlanOptions, Requantize, Target,
    data::{self, InputSpec, Preprocess},
    engine::{Code, Elem, Machine, Program, Session},
    graph::Tensor,
    onnx,
    passes::PrepareOptions,
    quant::calibrate::Samples as _,
    quantize::Silent,
};
use midtread_testkit::root;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static N_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it does what the system's allocator does, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = N_ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static NEVER: AtomicBool = AtomicBool::new(false);

/// The demo's net in integers, and some pictures.
fn demo(requantize: Requantize) -> (Code, Vec<Tensor>) {
    let model = onnx::load(root().join("assets/demo/fashion_mobilenet.onnx")).unwrap();
    let specs = InputSpec::of(&model).unwrap();
    let limit = data::Options { limit: Some(8), preprocess: Preprocess::preset("fashion_mnist") };
    let images = root().join("assets/demo/calibration-images-idx3-ubyte.gz");
    let samples = midtread::samples::open(&images, &specs, &limit).unwrap();
    let options = Options {
        prepare: PrepareOptions::default(),
        plan: PlanOptions::default(),
        target: Target::find("onnxruntime_cpu").unwrap(),
        format: Format::Qdq,
        collect: None,
        n_threads: 1,
        max_bytes: None,
        progress: &Silent,
        interrupted: &NEVER,
    };
    let int8 = midtread::quantize(model, Some(&samples), &options).unwrap().model;
    let pictures = (0..8).map(|i| samples.sample(i).unwrap().inputs[0].1.clone()).collect();
    (Code::compile(&int8, &EngineOptions { requantize }).unwrap(), pictures)
}

#[test]
fn a_program_that_was_saved_and_read_is_the_same_and_says_the_same() {
    for &requantize in Requantize::ALL {
        let (code, pictures) = demo(requantize);
        let bytes = code.to_bytes();
        let read = Code::from_bytes(bytes.clone().into()).unwrap();
        assert_eq!(read, code);
        assert_eq!(read.to_bytes(), bytes, "the same bytes for the same program");
        let (made, read) =
            (Program::new(code).unwrap(), Program::from_bytes(bytes.into()).unwrap());
        let name = made.inputs()[0].name.clone();
        for picture in &pictures {
            let inputs = || vec![(name.clone(), picture.clone())];
            assert_eq!(made.run(inputs()).unwrap(), read.run(inputs()).unwrap());
        }
        // A batch of another size than the arena was planned for.
        let two =
            [pictures[0].as_slice::<f32>().unwrap(), pictures[1].as_slice().unwrap()].concat();
        let mut dims = pictures[0].dims().to_vec();
        dims[0] = 2;
        let both = read.run(vec![(name.clone(), Tensor::from_slice(dims, &two).unwrap())]).unwrap();
        let one = |i: usize| {
            let outputs = made.run(vec![(name.clone(), pictures[i].clone())]).unwrap();
            outputs[0].1.to_vec::<f32>().unwrap()
        };
        assert_eq!(both[0].1.to_vec::<f32>().unwrap(), [one(0), one(1)].concat());
    }
}

#[test]
fn fixed_point_answers_as_floating_point_does() {
    let ((float, pictures), (fixed, _)) = (demo(Requantize::Float), demo(Requantize::FixedPoint));
    assert_ne!(float, fixed);
    let programs = [float, fixed].map(|code| Program::new(code).unwrap());
    let name = programs[0].inputs()[0].name.clone();
    for picture in pictures {
        let outputs = programs.each_ref().map(|program| {
            let outputs = program.run(vec![(name.clone(), picture.clone())]).unwrap();
            outputs[0].1.to_vec::<f32>().unwrap()
        });
        let [float, fixed] = &outputs;
        let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
        assert_eq!(best(float), best(fixed));
        // Halves are rounded up and not to even, and a product to 31 bits and not to 24: seldom another code.
        let span = float.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let differ = float.iter().zip(fixed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(differ <= 0.05 * span, "{differ} of {span}");
    }
}

#[test]
fn a_run_allocates_nothing_after_the_first() {
    for &requantize in Requantize::ALL {
        let (code, pictures) = demo(requantize);
        let machine = Machine::new(code).unwrap();
        assert_eq!(machine.n_operators(), 0);
        let mut session: Session = Session::new(&machine).unwrap();
        let mut outputs = Vec::new();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            for (i, picture) in pictures.iter().enumerate() {
                let before = N_ALLOCATIONS.get();
                let input = session.input(&machine, 0, Elem::F32, picture.dims()).unwrap();
                input.copy_from_slice(picture.as_bytes());
                session.run(&machine).unwrap();
                let output = session.output(&machine, 0).unwrap();
                let n = N_ALLOCATIONS.get() - before;
                assert!(i == 0 || n == 0, "{requantize:?}, run {i}: {n} allocations");
                outputs.push(output.bytes.to_vec());
            }
        });
        // And what it says is what the program says.
        let (code, _) = demo(requantize);
        let program = Program::new(code).unwrap();
        let name = program.inputs()[0].name.clone();
        for (picture, output) in pictures.into_iter().zip(outputs) {
            let said = program.run(vec![(name.clone(), picture)]).unwrap();
            assert_eq!(said[0].1.as_bytes(), output);
        }
    }
}

/// The header for a payload: docs of the file's format say how.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    const PRIME: u64 = 0x0100_0000_01b3;
    let payload = &bytes[28..];
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let (words, rest) = payload.as_chunks::<8>();
    for word in words {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        hash ^= hash >> 32;
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    }
    let len = payload.len() as u64;
    bytes[12..20].copy_from_slice(&len.to_le_bytes());
    bytes[20..28].copy_from_slice(&hash.to_le_bytes());
    bytes
}

#[test]
fn changed_bytes_are_an_error_or_another_program_and_never_a_panic() {
    let (code, pictures) = demo(Requantize::Float);
    let bytes = code.to_bytes();
    assert_eq!(sealed(bytes.clone()), bytes, "the test seals as the engine does");
    // Without a new seal, every change is found.
    for at in (0..bytes.len()).step_by(bytes.len() / 200) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Code::from_bytes(changed.into()).is_err(), "byte {at}");
        assert!(Code::from_bytes(bytes[..at].to_vec().into()).is_err(), "{at} bytes");
    }
    // The version is not this one's.
    let mut newer = bytes.clone();
    newer[8] += 1;
    let error = Code::from_bytes(newer.into()).unwrap_err().to_string();
    assert!(error.contains("version"), "{error}");

    let mut state = 7_u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % n
    };
    let (mut n_refused, mut n_ran) = (0, 0);
    for case in 0..600 {
        let mut changed = bytes.clone();
        for _ in 0..1 + random(3) {
            // Structure lies between the weights, which are most of the bytes: look for a byte that is followed by
            // zeros, as counts and sizes are.
            let mut at = 28 + random(changed.len() - 28);
            for _ in 0..200 {
                if changed[at..].iter().take(3).skip(1).all(|&b| b == 0) {
                    break;
                }
                at = 28 + random(changed.len() - 28);
            }
            changed[at] = match random(4) {
                0 => 0xFF,
                1 => changed[at].wrapping_add(1),
                2 => 0,
                _ => random(256) as u8,
            };
        }
        if case % 10 == 0 {
            changed.truncate(28 + random(changed.len() - 28));
        }
        let Ok(code) = Code::from_bytes(sealed(changed).into()) else {
            n_refused += 1;
            continue;
        };
        let Ok(machine) = Machine::new(code) else {
            n_refused += 1;
            continue;
        };
        let mut session: Session = match Session::new(&machine) {
            Ok(session) => session,
            Err(_) => continue,
        };
        let Ok(input) = session.input(&machine, 0, Elem::F32, pictures[0].dims()) else { continue };
        input.copy_from_slice(pictures[0].as_bytes());
        let _ = session.run(&machine);
        n_ran += 1;
    }
    assert!(100 < n_refused && 100 < n_ran, "{n_refused} refused, {n_ran} run");
}
