#![no_main]

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    unfreeze_fuzz::mutate::archive(data, size, max_size, seed)
});
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| unfreeze_fuzz::exercise::run("pytorch", bytes));
