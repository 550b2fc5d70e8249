//! Doing what a plan says: tensor by tensor, a piece at a time, on several threads.
//!
//! Each piece is read, brought to `f32`, encoded and written to its final place, independent of all others; so memory is
//! a few pieces for each thread, and the bytes do not depend on the number of threads. Larger are only pieces that a
//! format cannot cut: a row, or a whole tensor whose elements share parameters (`:tensor`). Nested scales are collected
//! and quantized when the last piece of their tensor is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use midtread_num::formats::{Format, FormatError, Search, Shape, Sharing, int, nested};

use crate::checkpoint::{Checkpoint, Container};
use crate::encode::encode;
use crate::error::Error;
use crate::files::Partial;
use crate::layout::{self, METADATA_KEY, Slot, Stored};
use crate::plan::{Item, Options, Plan, Target};
use crate::read::{Scratch, read_values, source_unit};
use crate::{gguf, safetensors};

/// Elements of a piece, about: with its codes it stays in the second-level cache.
const PIECE: usize = 1 << 17;
/// Bytes of a piece that is copied.
const COPIED: u64 = 1 << 20;

/// How a conversion is run.
pub struct Run<'a> {
    /// Threads.
    pub n_threads: usize,
    /// Called now and then with the bytes of the source that are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Set when the caller wants it to stop.
    pub interrupted: &'a AtomicBool,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The files, the index of shards last.
    pub paths: Vec<PathBuf>,
    /// Bytes of all of them.
    pub n_bytes: u64,
    /// Time that threads spent reading, encoding and writing, added up over the threads.
    pub seconds: Seconds,
}

/// Time of all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seconds {
    /// Reading, and bringing bytes to `f32`.
    pub read: f64,
    /// Values to codes.
    pub encode: f64,
    /// Writing.
    pub write: f64,
}

/// Where a spec's bytes are.
#[derive(Clone, Copy, Debug)]
struct Place {
    file: usize,
    offset: u64,
}

struct Files {
    partials: Vec<Partial>,
    places: Vec<Place>,
    index: Option<Partial>,
    n_bytes: u64,
}

impl Files {
    fn write(&self, spec: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let place = self.places[spec];
        self.partials[place.file].write_at(bytes, place.offset + offset)
    }
}

impl Run<'_> {
    /// Without threads, a listener, or an end before the end.
    pub const ALONE: Run<'static> = Run {
        n_threads: 1,
        progress: &|_| (),
        interrupted: {
            static NEVER: AtomicBool = AtomicBool::new(false);
            &NEVER
        },
    };
}

/// Writes the checkpoint that `plan` describes to `path`, under temporary names until all of it is there. After an
/// error nothing is left. The files read may be those that are replaced.
pub fn convert(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &Options,
    path: &Path,
    run: &Run<'_>,
) -> Result<Written, Error> {
    convert_pieces(checkpoint, plan, options, path, run, PIECE)
}

/// [`convert`] in pieces of about so many elements.
pub(crate) fn convert_pieces(
    checkpoint: &Checkpoint,
    plan: &Plan,
    options: &Options,
    path: &Path,
    run: &Run<'_>,
    piece: usize,
) -> Result<Written, Error> {
    let files = create(plan, path)?;
    let jobs = plan.items.iter().map(|item| Job::new(checkpoint, item, options, piece));
    let jobs: Vec<Job<'_>> = jobs.collect();
    // A task is a piece of a job.
    let starts: Vec<usize> = jobs
        .iter()
        .scan(0, |n, job| {
            let start = *n;
            *n += job.n_pieces;
            Some(start)
        })
        .collect();
    let n_tasks: usize = jobs.iter().map(|job| job.n_pieces).sum();
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let seconds = Mutex::new(Seconds::default());
    let worker = || {
        let mut worker = Worker {
            checkpoint,
            files: &files,
            scratch: Scratch::default(),
            parts: vec![],
            times: Times::default(),
        };
        while !stop.load(Ordering::Relaxed) {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if n_tasks <= task {
                break;
            }
            let job = starts.partition_point(|start| *start <= task) - 1;
            let result = if run.interrupted.load(Ordering::Relaxed) {
                Err(Error::Interrupted)
            } else {
                worker.piece(&jobs[job], task - starts[job])
            };
            match result {
                Ok(n) => (run.progress)(done.fetch_add(n, Ordering::Relaxed) + n),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    // The first in the order of the file, so that the message is the same every time, as far as it can be.
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    if failed.as_ref().is_none_or(|(other, _)| task < *other) {
                        *failed = Some((task, error));
                    }
                }
            }
        }
        let mut all = seconds.lock().unwrap_or_else(PoisonError::into_inner);
        all.read += worker.times.read.as_secs_f64();
        all.encode += worker.times.encode.as_secs_f64();
        all.write += worker.times.write.as_secs_f64();
    };
    std::thread::scope(|scope| {
        for _ in 1..run.n_threads.clamp(1, n_tasks.max(1)) {
            scope.spawn(worker);
        }
        worker();
    });
    if let Some((_, error)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut paths = vec![];
    for partial in files.partials.into_iter().chain(files.index) {
        paths.push(partial.put_in_place()?);
    }
    let seconds = seconds.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Written { paths, n_bytes: files.n_bytes, seconds })
}

/// Makes the files and writes their headers.
fn create(plan: &Plan, path: &Path) -> Result<Files, Error> {
    if plan.container == Container::Gguf {
        let specs: Vec<_> = plan.specs.iter().collect();
        let (header, offsets, n_bytes) = gguf::header(&plan.keys, &specs)?;
        let partial = Partial::create(path, n_bytes)?;
        partial.write_at(&header, 0)?;
        let places = offsets.into_iter().map(|offset| Place { file: 0, offset }).collect();
        return Ok(Files { partials: vec![partial], places, index: None, n_bytes });
    }
    let shards = shards(plan);
    let paths = shard_paths(path, plan.container, shards.len())?;
    let mut files = Files {
        partials: vec![],
        places: vec![Place { file: 0, offset: 0 }; plan.specs.len()],
        index: None,
        n_bytes: 0,
    };
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (file, (items, path)) in shards.iter().zip(&paths).enumerate() {
        // As the reference implementation has it: types with larger elements first, so that each is aligned.
        let mut order: Vec<usize> =
            items.iter().flat_map(|i| plan.items[*i].specs.clone()).collect();
        order.sort_by_key(|spec| std::cmp::Reverse(plan.specs[*spec].dtype.n_bytes));
        let specs: Vec<_> = order.iter().map(|spec| &plan.specs[*spec]).collect();
        let mut metadata = plan.metadata.clone();
        let described: BTreeMap<_, _> = items
            .iter()
            .filter_map(|i| plan.items[*i].described.as_ref())
            .map(|(name, described)| (name, described))
            .collect();
        if !described.is_empty() {
            let text = serde_json::to_string(&described).expect("plain data");
            metadata.insert(METADATA_KEY.into(), text);
        }
        let header = safetensors::header(&specs, &metadata)?;
        let mut offset = header.len() as u64;
        for spec in order {
            let n_bytes = plan.specs[spec].n_bytes;
            files.places[spec] = Place { file, offset };
            offset += n_bytes;
            total_size += n_bytes;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if weight_map.insert(plan.specs[spec].name.clone(), name).is_some() {
                let name = &plan.specs[spec].name;
                return Err(Error::Options(format!("two tensors would be called `{name}`")));
            }
        }
        let partial = Partial::create(path, offset)?;
        partial.write_at(&header, 0)?;
        files.partials.push(partial);
        files.n_bytes += offset;
    }
    if plan.container == Container::Sharded {
        let text = safetensors::index(total_size, &weight_map);
        let partial = Partial::create(path, text.len() as u64)?;
        partial.write_at(&text, 0)?;
        files.index = Some(partial);
        files.n_bytes += text.len() as u64;
    }
    Ok(files)
}

/// Which items go into which file.
fn shards(plan: &Plan) -> Vec<Vec<usize>> {
    let all = (0..plan.items.len()).collect();
    if plan.container != Container::Sharded {
        return vec![all];
    }
    let (mut shards, mut n_bytes) = (vec![vec![]], 0);
    for i in all {
        let n = plan.items[i].n_bytes.1;
        if plan.shard_bytes < n_bytes + n && n_bytes != 0 {
            shards.push(vec![]);
            n_bytes = 0;
        }
        shards.last_mut().expect("there is one").push(i);
        n_bytes += n;
    }
    shards
}

/// `model.safetensors.index.json` has `model-00001-of-00002.safetensors` beside it.
fn shard_paths(path: &Path, container: Container, n: usize) -> Result<Vec<PathBuf>, Error> {
    if container != Container::Sharded {
        return Ok(vec![path.to_owned()]);
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let stem =
        name.and_then(|name| name.strip_suffix(".safetensors.index.json")).ok_or_else(|| {
            Error::Options("the index of shards must end in .safetensors.index.json".into())
        })?;
    let name = |i: usize| format!("{stem}-{:05}-of-{n:05}.safetensors", i + 1);
    Ok((0..n).map(|i| path.with_file_name(name(i))).collect())
}

/// What there is to do for an item.
struct Job<'a> {
    item: &'a Item,
    /// As it is used, importances included.
    format: Option<Format<'a>>,
    n: usize,
    /// Elements of a piece.
    piece: usize,
    n_pieces: usize,
    /// For what needs it of the whole tensor.
    max_abs: OnceLock<Result<f32, String>>,
    needs_max_abs: bool,
    nested: Option<Nested>,
}

/// Scales that are quantized at the end.
struct Nested {
    format: Format<'static>,
    absmax: Mutex<Vec<f32>>,
    n_left: AtomicUsize,
}

impl<'a> Job<'a> {
    fn new(checkpoint: &Checkpoint, item: &'a Item, options: &'a Options, piece: usize) -> Self {
        let entry = &checkpoint.entries[item.entry];
        let n = entry.n() as usize;
        let mut job = Job {
            item,
            format: None,
            n,
            piece: n,
            n_pieces: 1,
            max_abs: OnceLock::new(),
            needs_max_abs: false,
            nested: None,
        };
        let unit = match item.target {
            Target::Same => {
                let largest = plan_copied(checkpoint, item).map(|(_, n_bytes)| n_bytes).max();
                job.n_pieces = largest.unwrap_or(0).div_ceil(COPIED).max(1) as usize;
                return job;
            }
            Target::Float32 => 1,
            Target::Format(mut format) => {
                if item.has_importance {
                    let importances = options.importances.as_ref();
                    format.settings.importance = importances.and_then(|of| of.get(&entry.name));
                }
                job.needs_max_abs = format.def.needs_max_abs || is_int_of_tensor(&format);
                job.format = Some(format);
                target_unit(&format, item.shape, job.needs_max_abs)
            }
        };
        let unit = lcm(unit, source_unit(checkpoint, entry), n);
        job.piece = unit * (piece / unit).max(1);
        job.n_pieces = n.div_ceil(job.piece).max(1);
        if let Target::Format(format) = item.target
            && let Some((name, _, true)) = layout::four_bit(&format)
        {
            let plain = format!("{name}:{}", format.settings.sharing);
            let n_blocks = format.settings.sharing.n_groups(&item.shape.flat());
            job.nested = Some(Nested {
                format: Format::named(&plain).expect("the format without nested scales"),
                absmax: Mutex::new(vec![0.0; n_blocks]),
                n_left: AtomicUsize::new(job.n_pieces),
            });
        }
        job
    }
}

/// Whether only the largest magnitude of the tensor is needed besides a piece.
fn is_int_of_tensor(format: &Format<'_>) -> bool {
    let settings = &format.settings;
    std::ptr::eq(format.def, &int::SIGNED)
        && settings.sharing == Sharing::Tensor
        && settings.search == Search::MaxAbs
        && settings.n != 1
}

/// Pieces that begin at a multiple of so many elements are quantized as they are in the whole.
fn target_unit(format: &Format<'_>, shape: Shape, has_max_abs: bool) -> usize {
    let whole = shape.n().max(1);
    match format.settings.sharing {
        Sharing::Tensor if !has_max_abs => whole,
        Sharing::Block(size) if format.def.is_flat => {
            lcm(lcm(size, 2, whole), 2 * nested::BLOCK_SIZE, whole)
        }
        _ => {
            // As few rows as end at a byte's border in every part.
            let bytes = |rows: usize| -> Vec<usize> {
                let layout = format.layout(Shape { rows, cols: shape.cols });
                layout.iter().filter(|p| !p.is_whole).map(|p| p.n_bytes()).collect()
            };
            let ends_at_a_byte = |rows: usize| {
                bytes(8 * rows).iter().zip(bytes(rows)).all(|(eight, one)| *eight == 8 * one)
            };
            let rows = [1, 2, 4, 8].into_iter().find(|rows| ends_at_a_byte(*rows)).unwrap_or(8);
            rows.saturating_mul(shape.cols).clamp(1, whole)
        }
    }
}

/// The least common multiple, at most `whole`: what is not less is the whole anyway.
fn lcm(a: usize, b: usize, whole: usize) -> usize {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    let lcm = (a.max(1) / x).saturating_mul(b.max(1));
    if whole <= lcm { whole.max(1) } else { lcm }
}

/// The tensors that are copied, with their bytes.
fn plan_copied<'a>(
    checkpoint: &'a Checkpoint,
    item: &Item,
) -> impl Iterator<Item = (usize, u64)> + use<'a> {
    let tensors = match &checkpoint.entries[item.entry].stored {
        Stored::Plain(i) => std::slice::from_ref(i),
        Stored::Parts(parts) => &parts.tensors,
    };
    tensors.iter().map(|i| (*i, checkpoint.tensors[*i].n_bytes))
}

#[derive(Default)]
struct Times {
    read: Duration,
    encode: Duration,
    write: Duration,
}

struct Worker<'a> {
    checkpoint: &'a Checkpoint,
    files: &'a Files,
    scratch: Scratch,
    parts: Vec<Vec<u8>>,
    times: Times,
}

impl Worker<'_> {
    /// Does piece `i` of a job; the bytes of the source that it had.
    fn piece(&mut self, job: &Job<'_>, i: usize) -> Result<u64, Error> {
        if i == 0 {
            for (spec, bytes) in &job.item.constants {
                self.files.write(job.item.specs.start + spec, 0, bytes)?;
            }
        }
        let share = |n_bytes: u64| {
            let part = |i: usize| (u128::from(n_bytes) * i as u128 / job.n_pieces as u128) as u64;
            part(i + 1) - part(i)
        };
        if let Target::Same = job.item.target {
            self.copy(job, i)?;
            return Ok(share(job.item.n_bytes.0));
        }
        let start = i * job.piece;
        let len = job.piece.min(job.n - start);
        let result = match &job.format {
            None => self.float32(job, start, len),
            Some(format) => self.quantized(job, *format, start, len),
        };
        result?;
        Ok(share(job.item.n_bytes.0))
    }

    fn copy(&mut self, job: &Job<'_>, i: usize) -> Result<(), Error> {
        let start = i as u64 * COPIED;
        for (k, (tensor, n_bytes)) in plan_copied(self.checkpoint, job.item).enumerate() {
            let len = COPIED.min(n_bytes.saturating_sub(start));
            if len != 0 {
                let bytes = self.scratch.bytes(len as usize);
                let begin = Instant::now();
                self.checkpoint.read(tensor, start, bytes)?;
                let read = Instant::now();
                self.files.write(job.item.specs.start + k, start, bytes)?;
                self.times.read += read - begin;
                self.times.write += read.elapsed();
            }
        }
        Ok(())
    }

    fn read(&mut self, job: &Job<'_>, start: usize, len: usize) -> Result<(), Error> {
        let begin = Instant::now();
        let entry = &self.checkpoint.entries[job.item.entry];
        read_values(self.checkpoint, entry, start, len, &mut self.scratch)?;
        self.times.read += begin.elapsed();
        Ok(())
    }

    fn float32(&mut self, job: &Job<'_>, start: usize, len: usize) -> Result<(), Error> {
        self.read(job, start, len)?;
        let begin = Instant::now();
        let values = &self.scratch.values[..len];
        if cfg!(target_endian = "little") {
            let bytes = bytemuck::cast_slice(values);
            self.files.write(job.item.specs.start, 4 * start as u64, bytes)?;
        } else {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.files.write(job.item.specs.start, 4 * start as u64, &bytes)?;
        }
        self.times.write += begin.elapsed();
        Ok(())
    }

    fn quantized(
        &mut self,
        job: &Job<'_>,
        mut format: Format<'_>,
        start: usize,
        len: usize,
    ) -> Result<(), Error> {
        let entry = &self.checkpoint.entries[job.item.entry];
        if job.needs_max_abs {
            let max_abs = job.max_abs.get_or_init(|| self.max_abs(job).map_err(|e| e.to_string()));
            // A second thread has only the words of what the first met.
            format.settings.max_abs = Some(max_abs.clone().map_err(Error::Options)?);
        }
        self.read(job, start, len)?;
        let begin = Instant::now();
        let is_flat = format.def.is_flat;
        let shape = job.item.shape;
        let of = |n: usize| match (is_flat, shape.cols) {
            (true, _) => Shape { rows: 1, cols: n },
            (false, 0) => Shape { rows: 0, cols: 0 },
            (false, cols) => Shape { rows: n / cols, cols },
        };
        let values = &self.scratch.values[..len];
        let used = match &job.nested {
            Some(nested) => nested.format,
            None => format,
        };
        encode(&used, values, of(len), &mut self.parts).map_err(|source| {
            let source = match source {
                FormatError::NotFinite { at, value } => {
                    FormatError::NotFinite { at: at + start, value }
                }
                other => other,
            };
            Error::Tensor { tensor: entry.name.clone(), source }
        })?;
        let encoded = Instant::now();
        let offsets = used.layout(of(start));
        for (k, bytes) in self.parts.iter().enumerate() {
            if job.nested.is_some() && k == 1 {
                break;
            }
            let offset = if offsets[k].is_whole { 0 } else { offsets[k].n_bytes() as u64 };
            let offset = if start == 0 { 0 } else { offset };
            if let Slot::Spec(spec) = job.item.slots[k] {
                self.files.write(job.item.specs.start + spec, offset, bytes)?;
            }
        }
        if let Some(nested) = &job.nested {
            self.collect(job, nested, start)?;
        }
        self.times.encode += encoded - begin;
        self.times.write += encoded.elapsed();
        Ok(())
    }

    /// Takes the scales of a piece; after the last one all of them are quantized and written.
    fn collect(&self, job: &Job<'_>, nested: &Nested, start: usize) -> Result<(), Error> {
        let Sharing::Block(block) = nested.format.settings.sharing else {
            unreachable!("flat formats have blocks")
        };
        let mut absmax = nested.absmax.lock().unwrap_or_else(PoisonError::into_inner);
        let scales = self.parts[1].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        for (to, scale) in absmax[start / block..].iter_mut().zip(scales) {
            *to = scale;
        }
        if nested.n_left.fetch_sub(1, Ordering::Relaxed) != 1 {
            return Ok(());
        }
        let (codes, scales, offset) = nested::quantize_scales(&absmax);
        let codes: Vec<u8> = codes.iter().map(|code| *code as u8).collect();
        let scales: Vec<u8> = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
        let first = job.item.specs.start;
        for (slot, bytes) in job.item.slots[1..].iter().zip([&codes, &scales]) {
            if let Slot::Spec(spec) = slot {
                self.files.write(first + spec, 0, bytes)?;
            }
        }
        match job.item.slots[3] {
            Slot::Spec(spec) => self.files.write(first + spec, 0, &offset.to_le_bytes()),
            Slot::NestedOffset(spec) => {
                let entry = &self.checkpoint.entries[job.item.entry];
                let Target::Format(format) = job.item.target else { unreachable!("it is nested") };
                let dtype = crate::plan::original_dtype(self.checkpoint, entry);
                let text = layout::quant_state(&format, &entry.dims, dtype, offset);
                self.files.write(first + spec, 0, &text)
            }
        }
    }

    /// The largest magnitude of the whole tensor.
    fn max_abs(&mut self, job: &Job<'_>) -> Result<f32, Error> {
        let mut max = 0.0_f32;
        for i in 0..job.n_pieces {
            let start = i * job.piece;
            let len = job.piece.min(job.n - start);
            self.read(job, start, len)?;
            // What is not finite is refused with its place when its piece is quantized.
            let finite =
                self.scratch.values[..len].iter().map(|x| x.abs()).filter(|x| x.is_finite());
            max = finite.fold(max, f32::max);
        }
        Ok(max)
    }
}
