//! Passes on models built in code: what they do, what they refuse, and that the model computes the same.

mod common;
mod fuse;
mod passes;
mod patterns;
