//! What the targets have in common: no more memory than this, also not for a moment, so that an input that asks for more is found.
//! The seeds, and what a fuzzer makes of them, are a few kilobytes long; the largest allocation that is in order is the room for a
//! compressed body of 1 MiB and what its decoder may take beside that.

use cap::Cap;
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 64 << 20);
