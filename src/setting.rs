//! The value types that every module's `Config` is made of.
//!
//! Durations are written `"100ms"`, `"30s"`, `"45m"`, `"1h 30m"` ([`std::time::Duration`] with [`Period`]), sizes `"512KiB"`, `"1GiB"`
//! ([`bytesize::ByteSize`]).

mod list;
mod network;
mod period;
mod secret;
mod size;

pub use list::List;
pub use network::Network;
pub use period::Period;
pub use secret::{Secret, SecretError};
pub use size::Size;
