//! What has to hold whatever comes in, as one function for each way in: of the bytes that a stranger, a damaged disk or a mistaken
//! operator may bring, and with more to say of them than that nothing panics.
//!
//! cargo-fuzz drives these from the package in `fuzz/`, for hours where somebody has them. So that they cannot rot in between, the
//! unit tests run them over everything in `fuzz/seeds/` and over some changes of that. Neither is part of what is shipped.

mod auth;
mod config;
mod decode;
mod input;
mod recovery;
mod segment;
mod template;
mod unpack;

pub use auth::auth;
pub use config::config;
pub use decode::{decode, form};
pub use recovery::recovery;
pub use segment::segment;
pub use template::template;
pub use unpack::unpack;

#[cfg(test)]
mod tests;
