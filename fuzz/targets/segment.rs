#![no_main]

use cdrelay_fuzz as _;

// Without the hook that ends the process at every panic: those of the library for CEL are caught.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| cdrelay::fuzz::segment(data));
