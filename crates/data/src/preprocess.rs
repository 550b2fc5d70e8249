//! From a picture to a tensor, as data.
//!
//! A [`Preprocess`] is a list of steps and how to turn bytes into numbers. It is one of the [`PRESETS`], or read from
//! TOML:
//!
//! ```toml
//! preset = "imagenet"                # optional: what is not said here is taken from it
//! color = "rgb"                      # rgb, bgr or gray
//! layout = "nchw"                    # nchw or nhwc; left out, it is what the model's input shape says
//! divisor = 255.0                    # out = (byte / divisor - mean) / std
//! mean = [0.485, 0.456, 0.406]       # for each channel, in the order of `color`, or one for all
//! std = [0.229, 0.224, 0.225]
//! steps = [
//!     { resize_shorter_side = 256, filter = "bilinear" },
//!     { center_crop = [224, 224] },
//! ]
//! ```
//!
//! Pictures are resampled as Pillow does it, bit for bit: in 8 bits, the filter widened when a picture becomes
//! smaller ("antialias"). Transparency is dropped, as `Image.convert("RGB")` does, not blended; EXIF orientation is not
//! applied; 16-bit pictures become 8-bit ones.

use std::path::Path;

use image::DynamicImage;
use midtread_graph::{DataType, Tensor};
use serde::Deserialize;

use crate::{error::Error, resample::resample, spec::InputSpec};

/// How a picture becomes the model's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    /// What it is called: a preset's name, or a file's.
    pub name: String,
    /// What happens to the picture, in this order.
    pub steps: Vec<Step>,
    /// Which channels there are, and in which order.
    pub color: Color,
    /// Where the channels go; by the shape of the model's input where that is `None`.
    pub layout: Option<Layout>,
    /// Bytes are divided by it first.
    pub divisor: f32,
    /// Subtracted then: one for each channel, or one for all.
    pub mean: Vec<f32>,
    /// Divided by last: one for each channel, or one for all.
    pub std: Vec<f32>,
}

/// One change of a picture's size. In TOML a table with one of these keys, and `filter` with a resize.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// The shorter side becomes `size`, the longer one `size * longer / shorter` rounded down (torchvision's
    /// `Resize`).
    ResizeShorterSide {
        /// In pixels.
        size: u32,
        /// How.
        filter: Filter,
    },
    /// Both sides, whatever the proportions. In TOML `resize = [height, width]`.
    Resize {
        /// In pixels.
        height: u32,
        /// In pixels.
        width: u32,
        /// How.
        filter: Filter,
    },
    /// The middle (torchvision's `CenterCrop`, for pictures that are large enough).
    CenterCrop {
        /// In pixels.
        height: u32,
        /// In pixels.
        width: u32,
    },
    /// A square in the middle with sides of `fraction` times the shorter one, rounded down (TensorFlow's).
    CenterCropFraction(f32),
}

/// A resampling filter, by Pillow's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle.
    Bilinear,
    /// The cubic with a = -0.5 (Catmull-Rom).
    Bicubic,
    /// A windowed sinc with three lobes.
    Lanczos,
}

/// Channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// `(19595 R + 38470 G + 7471 B + 2^15) / 2^16`, as Pillow computes it.
    Gray,
}

/// Where the channels are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Before height and width.
    Nchw,
    /// After them.
    Nhwc,
}

/// A named preprocessing.
pub struct Preset {
    /// `snake_case`, unique.
    pub name: &'static str,
    /// One line for `--help` and the reference documentation.
    pub summary: &'static str,
    /// It.
    pub make: fn() -> Preprocess,
}

/// Every preset. The values of `--preprocess` and its documentation are made from this list.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "imagenet",
        summary: "torchvision: shorter side 256 bilinear, centre 224, (x / 255 - mean) / std",
        make: || Preprocess {
            steps: shorter_and_crop(256, 224, Filter::Bilinear),
            divisor: 255.0,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            ..plain("imagenet")
        },
    },
    Preset {
        name: "imagenet_bicubic",
        summary: "timm's default: shorter side 256 bicubic, centre 224, (x / 255 - mean) / std",
        make: || Preprocess {
            steps: shorter_and_crop(256, 224, Filter::Bicubic),
            divisor: 255.0,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
            ..plain("imagenet_bicubic")
        },
    },
    Preset {
        name: "imagenet_tf",
        summary: "TensorFlow: centre 7/8, 224 x 224 bilinear, (x - 127.5) / 127.5",
        make: || Preprocess { steps: crop_and_resize(224), ..signed("imagenet_tf") },
    },
    Preset {
        name: "imagenet_caffe",
        summary: "Caffe: shorter side 256 bilinear, centre 224, BGR, minus (103.939, 116.779, 123.68)",
        make: || Preprocess {
            steps: shorter_and_crop(256, 224, Filter::Bilinear),
            color: Color::Bgr,
            mean: vec![103.939, 116.779, 123.68],
            ..plain("imagenet_caffe")
        },
    },
    Preset {
        name: "efficientnet_lite",
        summary: "EfficientNet-Lite0: shorter side 256 bicubic, centre 224, (x - 127) / 128",
        make: || Preprocess {
            steps: shorter_and_crop(256, 224, Filter::Bicubic),
            mean: vec![127.0],
            std: vec![128.0],
            ..plain("efficientnet_lite")
        },
    },
    Preset {
        name: "inception",
        summary: "Inception: centre 7/8, 299 x 299 bilinear, (x - 127.5) / 127.5",
        make: || Preprocess { steps: crop_and_resize(299), ..signed("inception") },
    },
    Preset {
        name: "fashion_mnist",
        summary: "28 x 28 gray, (x - 127.5) / 127.5; what midtread's demo takes",
        make: || Preprocess { steps: exact(28), color: Color::Gray, ..signed("fashion_mnist") },
    },
    Preset {
        name: "mnist",
        summary: "28 x 28 gray, (x / 255 - 0.1307) / 0.3081",
        make: || Preprocess {
            steps: exact(28),
            color: Color::Gray,
            divisor: 255.0,
            mean: vec![0.1307],
            std: vec![0.3081],
            ..plain("mnist")
        },
    },
];

fn plain(name: &str) -> Preprocess {
    Preprocess {
        name: name.to_owned(),
        steps: Vec::new(),
        color: Color::Rgb,
        layout: None,
        divisor: 1.0,
        mean: vec![0.0],
        std: vec![1.0],
    }
}

fn signed(name: &str) -> Preprocess {
    Preprocess { mean: vec![127.5], std: vec![127.5], ..plain(name) }
}

fn shorter_and_crop(size: u32, crop: u32, filter: Filter) -> Vec<Step> {
    vec![Step::ResizeShorterSide { size, filter }, Step::CenterCrop { height: crop, width: crop }]
}

fn crop_and_resize(size: u32) -> Vec<Step> {
    let resize = Step::Resize { height: size, width: size, filter: Filter::Bilinear };
    vec![Step::CenterCropFraction(0.875), resize]
}

fn exact(size: u32) -> Vec<Step> {
    vec![Step::Resize { height: size, width: size, filter: Filter::Bilinear }]
}

/// The TOML form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    preset: Option<String>,
    color: Option<Color>,
    layout: Option<Layout>,
    divisor: Option<f32>,
    mean: Option<OneOrMore>,
    std: Option<OneOrMore>,
    steps: Option<Vec<TextStep>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(f32),
    More(Vec<f32>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextStep {
    resize_shorter_side: Option<u32>,
    resize: Option<[u32; 2]>,
    center_crop: Option<[u32; 2]>,
    center_crop_fraction: Option<f32>,
    filter: Option<Filter>,
}

impl Preprocess {
    /// A preset by its name.
    pub fn preset(name: &str) -> Option<Self> {
        PRESETS.iter().find(|preset| preset.name == name).map(|preset| (preset.make)())
    }

    /// A preset's name, or the path of a TOML file.
    pub fn find(name_or_path: &str) -> Result<Self, Error> {
        if let Some(preset) = Self::preset(name_or_path) {
            return Ok(preset);
        }
        let path = Path::new(name_or_path);
        if !path.exists() && crate::source::extension(path) != "toml" {
            let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
            let what =
                format!("there is no such preset or file; the presets are {}", names.join(", "));
            return Err(Error::Preprocess { name: format!("`{name_or_path}`"), what });
        }
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::from_toml(&text, name_or_path)
    }

    /// Reads the TOML form. `name` is for error messages.
    pub fn from_toml(text: &str, name: &str) -> Result<Self, Error> {
        let bad = |what: String| Error::Preprocess { name: format!("`{name}`"), what };
        let text: Text =
            toml::from_str(text).map_err(|e| bad(e.to_string().trim_end().to_owned()))?;
        let mut this = match &text.preset {
            None => plain(name),
            Some(preset) => {
                Self::preset(preset).ok_or_else(|| bad(format!("there is no preset `{preset}`")))?
            }
        };
        name.clone_into(&mut this.name);
        this.color = text.color.unwrap_or(this.color);
        this.layout = text.layout.or(this.layout);
        this.divisor = text.divisor.unwrap_or(this.divisor);
        let list = |numbers| match numbers {
            OneOrMore::One(x) => vec![x],
            OneOrMore::More(xs) => xs,
        };
        this.mean = text.mean.map_or(this.mean, list);
        this.std = text.std.map_or(this.std, list);
        if let Some(steps) = text.steps {
            this.steps = steps.into_iter().map(step).collect::<Result<_, _>>().map_err(bad)?;
        }
        this.check().map_err(bad)?;
        Ok(this)
    }

    fn n_channels(&self) -> usize {
        if self.color == Color::Gray { 1 } else { 3 }
    }

    fn check(&self) -> Result<(), String> {
        let n = self.n_channels();
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != n {
                return Err(format!("`{name}` has {} values for {n} channels", values.len()));
            }
            if !values.iter().all(|x| x.is_finite()) {
                return Err(format!("`{name}` must be finite"));
            }
        }
        if self.std.contains(&0.0) || self.divisor == 0.0 || !self.divisor.is_finite() {
            return Err("`std` and `divisor` must not be 0".to_owned());
        }
        Ok(())
    }

    /// Whether numbers come out as the bytes went in.
    fn keeps_bytes(&self) -> bool {
        self.divisor == 1.0
            && self.mean.iter().all(|&m| m == 0.0)
            && self.std.iter().all(|&s| s == 1.0)
    }

    /// The tensor for `spec`: `[channels, height, width]` or `[height, width, channels]`. The error is a clause.
    pub(crate) fn apply(&self, picture: Pixels, spec: &InputSpec) -> Result<Tensor, String> {
        let mut pixels = picture.recolored(self.color);
        for step in &self.steps {
            pixels = pixels.step(*step)?;
        }
        let (n, size) = (pixels.n_channels, pixels.width as usize * pixels.height as usize);
        let (height, width) = (pixels.height as usize, pixels.width as usize);
        let layout = self.layout.unwrap_or_else(|| layout_of(spec, n));
        let dims = match layout {
            Layout::Nchw => vec![n, height, width],
            Layout::Nhwc => vec![height, width, n],
        };
        // Position of each byte's channel and place in the output.
        let place = |channel: usize, i: usize| match layout {
            Layout::Nchw => channel * size + i,
            Layout::Nhwc => i * n + channel,
        };
        if spec.dtype == DataType::Uint8 {
            if !self.keeps_bytes() {
                return Err(format!(
                    "the model takes bytes, and `{}` makes other numbers of them",
                    self.name
                ));
            }
            let mut bytes = vec![0_u8; n * size];
            for (at, &byte) in pixels.bytes.iter().enumerate() {
                bytes[place(at % n, at / n)] = byte;
            }
            return Ok(Tensor::from_slice(dims, &bytes).expect("sized above"));
        }
        let mut values = vec![0.0_f32; n * size];
        for channel in 0..n {
            let of = |list: &[f32]| list[channel.min(list.len() - 1)];
            let (mean, std) = (of(&self.mean), of(&self.std));
            let table: [f32; 256] =
                std::array::from_fn(|byte| (byte as f32 / self.divisor - mean) / std);
            for (i, pixel) in pixels.bytes.chunks_exact(n).enumerate() {
                values[place(channel, i)] = table[usize::from(pixel[channel])];
            }
        }
        let tensor = match spec.dtype {
            DataType::Float16 => {
                let values: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
                Tensor::from_slice(dims, &values)
            }
            // Another type is found out, and named, when the sample is matched with the model's inputs.
            _ => Tensor::from_slice(dims, &values),
        };
        Ok(tensor.expect("sized above"))
    }
}

fn step(text: TextStep) -> Result<Step, String> {
    let needs_filter = || text.filter.ok_or_else(|| "a resize needs a `filter`".to_owned());
    let no_filter = |step| match text.filter {
        None => Ok(step),
        Some(_) => Err("a crop has no `filter`".to_owned()),
    };
    let sized = |sizes: &[u32]| match sizes.iter().all(|size| (1..=16_384).contains(size)) {
        true => Ok(()),
        false => Err(format!("sizes must lie in 1..=16384: {sizes:?}")),
    };
    match (text.resize_shorter_side, text.resize, text.center_crop, text.center_crop_fraction) {
        (Some(size), None, None, None) => {
            sized(&[size])?;
            Ok(Step::ResizeShorterSide { size, filter: needs_filter()? })
        }
        (None, Some(sizes @ [height, width]), None, None) => {
            sized(&sizes)?;
            Ok(Step::Resize { height, width, filter: needs_filter()? })
        }
        (None, None, Some(sizes @ [height, width]), None) => {
            sized(&sizes)?;
            no_filter(Step::CenterCrop { height, width })
        }
        (None, None, None, Some(fraction)) if 0.0 < fraction && fraction <= 1.0 => {
            no_filter(Step::CenterCropFraction(fraction))
        }
        (None, None, None, Some(fraction)) => Err(format!("`center_crop_fraction` must lie in (0, 1]: {fraction}")),
        _ => Err("a step has one of `resize_shorter_side`, `resize`, `center_crop`, `center_crop_fraction`".to_owned()),
    }
}

/// Where the model has its channels: after the sizes only if its shape says so.
fn layout_of(spec: &InputSpec, n_channels: usize) -> Layout {
    match spec.dims.as_deref() {
        Some([.., first, _, _]) if *first == Some(n_channels) => Layout::Nchw,
        Some([.., _, _, last]) if *last == Some(n_channels) => Layout::Nhwc,
        _ => Layout::Nchw,
    }
}

/// A picture in memory: bytes, the channels of a pixel together.
pub(crate) struct Pixels {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// 3, in the order of `order`, or 1.
    pub(crate) n_channels: usize,
    pub(crate) bytes: Vec<u8>,
}

impl From<DynamicImage> for Pixels {
    fn from(image: DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        let is_gray = !image.color().has_color();
        // Gray values are kept, not weighted: dropping color from gray must change nothing.
        let (n_channels, bytes) = if is_gray {
            (1, image.into_luma8().into_raw())
        } else {
            (3, image.into_rgb8().into_raw())
        };
        Self { width, height, n_channels, bytes }
    }
}

impl Pixels {
    /// From RGB or gray to what is wanted.
    fn recolored(self, color: Color) -> Self {
        let n_channels = if color == Color::Gray { 1 } else { 3 };
        let bytes = match (self.n_channels, color) {
            (1, Color::Gray) | (3, Color::Rgb) => self.bytes,
            (1, _) => self.bytes.iter().flat_map(|&x| [x; 3]).collect(),
            (_, Color::Bgr) => {
                self.bytes.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect()
            }
            _ => {
                let weigh = |p: &[u8]| {
                    let [r, g, b] = [p[0], p[1], p[2]].map(u32::from);
                    ((19_595 * r + 38_470 * g + 7_471 * b + (1 << 15)) >> 16) as u8
                };
                self.bytes.chunks_exact(3).map(weigh).collect()
            }
        };
        Self { n_channels, bytes, ..self }
    }

    fn step(self, step: Step) -> Result<Self, String> {
        match step {
            Step::Resize { height, width, filter } => Ok(self.resized(height, width, filter)),
            Step::ResizeShorterSide { size, filter } => {
                let (shorter, longer) = (self.width.min(self.height), self.width.max(self.height));
                let longer = u64::from(size) * u64::from(longer) / u64::from(shorter.max(1));
                let longer = u32::try_from(longer).ok().filter(|&l| l <= 65_535);
                let longer = longer.ok_or_else(|| {
                    format!("a {} x {} picture is too long", self.width, self.height)
                })?;
                let (height, width) =
                    if self.width < self.height { (longer, size) } else { (size, longer) };
                Ok(self.resized(height, width, filter))
            }
            Step::CenterCrop { height, width } => {
                if self.height < height || self.width < width {
                    return Err(format!(
                        "a {} x {} picture (height x width) is smaller than the crop of {height} x {width}",
                        self.height, self.width
                    ));
                }
                // torchvision's `int(round(difference / 2))`, whose `round` takes ties to even.
                let start =
                    |side: u32, crop: u32| (f64::from(side - crop) / 2.0).round_ties_even() as u32;
                let (top, left) = (start(self.height, height), start(self.width, width));
                Ok(self.cropped(top, left, height, width))
            }
            Step::CenterCropFraction(fraction) => {
                let side = (f64::from(fraction) * f64::from(self.width.min(self.height))) as u32;
                let side = side.max(1);
                let (top, left) =
                    ((self.height - side).div_ceil(2), (self.width - side).div_ceil(2));
                Ok(self.cropped(top, left, side, side))
            }
        }
    }

    fn cropped(self, top: u32, left: u32, height: u32, width: u32) -> Self {
        let n = self.n_channels;
        let row = self.width as usize * n;
        let span = left as usize * n..(left + width) as usize * n;
        let rows = self.bytes.chunks_exact(row).skip(top as usize).take(height as usize);
        let bytes = rows.flat_map(|row| &row[span.clone()]).copied().collect();
        Self { width, height, n_channels: n, bytes }
    }

    fn resized(self, height: u32, width: u32, filter: Filter) -> Self {
        if (height, width) == (self.height, self.width) {
            return self;
        }
        let from = (self.width as usize, self.height as usize);
        let to = (width as usize, height as usize);
        Self {
            width,
            height,
            bytes: resample(&self.bytes, self.n_channels, from, to, filter),
            ..self
        }
    }
}
