#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| unfreeze_fuzz::exercise::run("catalog", bytes));
