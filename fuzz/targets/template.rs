#![no_main]

// Without libFuzzer's panic hook, which aborts: the CEL library's panics are caught.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| cdrelay_fuzz::template(data));
