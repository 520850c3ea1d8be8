//! Properties that hold for every input: of a stranger, a damaged disk, a mistaken operator. One function each.
//!
//! cargo-fuzz runs them as the targets of this package. `tests/fuzz.rs` runs them on stable Rust over every file of `seeds/` and over
//! mutations of these.

mod auth;
mod config;
mod decode;
mod decompress;
mod input;
mod memory_disk;
mod recovery;
mod segment;
mod template;

pub use auth::auth;
pub use config::config;
pub use decode::{decode, form};
pub use decompress::decompress;
pub use recovery::recovery;
pub use segment::segment;
pub use template::template;

/// Bounds the memory of a target, even for a moment, so that an input that allocates without bound is found. Seeds are a few kilobytes;
/// the largest legitimate allocation is the buffer of a compressed body of 1 MiB and its decoder.
#[cfg(fuzzing)]
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, 64 << 20);
