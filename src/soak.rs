//! Puts a running bridge to the test.

pub mod oracle;
