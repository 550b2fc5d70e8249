//! Pictures.

use std::path::{Path, PathBuf};

use image::{ImageError, ImageReader};
use midtread_graph::Sample;

use crate::{
    error::Error,
    preprocess::{Pixels, Preprocess},
    source::{Options, Source, relative},
    spec::{Check, InputSpec, fit},
};

struct Images {
    names: Vec<String>,
    files: Vec<PathBuf>,
    preprocess: Preprocess,
    /// The one input that must be given.
    spec: InputSpec,
}

/// The pictures in `files`, named by their paths below `root`.
pub(crate) fn open(
    path: &Path,
    root: &Path,
    files: Vec<PathBuf>,
    specs: &[InputSpec],
    options: &Options,
) -> Result<Box<dyn Source>, Error> {
    let (spec, preprocess) = only_input(path, specs, options)?;
    let names = files.iter().map(|file| relative(root, file)).collect();
    Ok(Box::new(Images { names, files, preprocess, spec }))
}

/// The input that pictures go to, and how.
pub(crate) fn only_input(
    path: &Path,
    specs: &[InputSpec],
    options: &Options,
) -> Result<(InputSpec, Preprocess), Error> {
    let mut required = specs.iter().filter(|spec| spec.required);
    let (Some(spec), None) = (required.next(), required.next()) else {
        let n_inputs = specs.iter().filter(|spec| spec.required).count();
        return Err(Error::NotAnImageModel { n_inputs });
    };
    let preprocess = options.preprocess.clone();
    let preprocess = preprocess.ok_or_else(|| Error::NoPreprocess { path: path.to_owned() })?;
    Ok((spec.clone(), preprocess))
}

impl Source for Images {
    fn names(&self) -> &[String] {
        &self.names
    }

    fn sample(&self, i: usize) -> Result<Sample, Error> {
        let path = &self.files[i];
        let undecodable = |source| Error::Image { path: path.clone(), source };
        // By what is in the file: pictures with the wrong extension are common.
        let reader = ImageReader::open(path)
            .and_then(ImageReader::with_guessed_format)
            .map_err(Error::io(path))?;
        let picture = reader.decode().map_err(|e| match e {
            ImageError::IoError(source) if source.raw_os_error().is_some() => {
                Error::Io { path: path.clone(), source }
            }
            e => undecodable(e),
        })?;
        let tensor = self.preprocess.apply(Pixels::from(picture), &self.spec);
        let tensor = tensor.map_err(|what| Error::format(path, what))?;
        let given = vec![(self.spec.name.clone(), tensor)];
        fit(&self.names[i], std::slice::from_ref(&self.spec), given, Check::Shape)
    }
}
