//! The machine code that kernels become: the instructions that they are written for are there, and what would slow them
//! down is not. No GPU is needed, but NVRTC and nvdisasm are (`UNFREEZE_NVDISASM`, else from `PATH`): without them these
//! tests are skipped, loudly, and with `UNFREEZE_REQUIRE_NVRTC=1` they fail.

use std::{collections::BTreeMap, env, ffi::OsString, fs, io::Write, process::Command};

use unfreeze::{
    device::cuda::{Compiler, all_nvrtc},
    ops::kernels::SOURCES,
};

/// The machine code of each kernel of a source, as every NVRTC at hand makes it, as text.
fn disassembled(name: &str, arch: &str) -> Vec<BTreeMap<String, String>> {
    let nvdisasm = env::var_os("UNFREEZE_NVDISASM").unwrap_or_else(|| OsString::from("nvdisasm"));
    let compilers = all_nvrtc();
    let missing = match Command::new(&nvdisasm).arg("--version").output() {
        Ok(_) => compilers.is_empty().then(|| "there is no NVRTC".to_owned()),
        Err(error) => Some(format!("{}: {error}; UNFREEZE_NVDISASM can name it", nvdisasm.display())),
    };
    if let Some(reason) = missing {
        let required = env::var("UNFREEZE_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "UNFREEZE_REQUIRE_NVRTC: {reason}");
        // Past the macros, whose output the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: tests of machine code: {reason}");
        return Vec::new();
    }
    let source = SOURCES.iter().find(|source| source.name == name).expect("a source");
    let folder = tempfile::tempdir().unwrap();
    let texts = compilers.into_iter().filter(|nvrtc| nvrtc.supports(arch)).map(|nvrtc| {
        let compiled = Compiler::new().nvrtc(nvrtc.into()).compile(source, arch).unwrap();
        let file = folder.path().join("kernels.cubin");
        fs::write(&file, compiled.cubin).unwrap();
        let output = Command::new(&nvdisasm).arg("-c").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let kernels = text.split("\n.text.").skip(1).map(|kernel| kernel.split_once(":\n").expect("a kernel's label"));
        kernels.map(|(entry, code)| (entry.to_owned(), code.to_owned())).collect()
    });
    texts.collect()
}

#[test]
fn hopper_multiplies_and_copies_in_the_background() {
    for kernels in disassembled("conv_1x1_sm90", "sm_90a") {
        assert_eq!(kernels.len(), 4);
        for (entry, code) in &kernels {
            let product = if entry.ends_with("x256") { "HGMMA.64x256x16.F32.BF16" } else { "HGMMA.64x128x16.F32.BF16" };
            // Boxes of a matrix, windows of images, and what both blocks get; registers that change hands.
            for wanted in [product, "UTMALDG.2D [", "UTMALDG.4D.IM2COL", "UTMALDG.2D.MULTICAST", "USETMAXREG"] {
                assert!(code.contains(wanted), "no {wanted} in {entry}");
            }
            // Threads wait for their stores to global memory at the start and at the end, never at a stage's barrier.
            assert_eq!(code.matches("MEMBAR.ALL.GPU").count(), 2, "{entry}");
            // ptxas runs products one by one where it cannot keep their sums in place.
            let (products, waits) = (code.matches("HGMMA").count(), code.matches("WARPGROUP.DEPBAR").count());
            assert!(
                products.is_multiple_of(4) && waits <= products / 4 + 1,
                "{entry}: {products} products, {waits} waits"
            );
        }
    }
}

#[test]
fn tensor_cores_multiply_and_copies_run_in_the_background() {
    for (source, narrow) in [
        ("conv_mma_forward", true),
        ("conv_mma_input_grad", false),
        ("conv_mma_weight_grad", true),
        ("conv_mma_patch", false),
    ] {
        for kernels in ["sm_80", "sm_120"].into_iter().flat_map(|arch| disassembled(source, arch)) {
            assert!(!kernels.is_empty());
            for (entry, code) in &kernels {
                let product = if entry.contains("tf32") { "HMMA.1688.F32.TF32" } else { "HMMA.16816.F32.BF16" };
                // Eight bytes at a time go through L1, sixteen past it.
                let copy = if narrow && entry.ends_with("_by4") { "LDGSTS.E.LTC128B.64" } else { "LDGSTS.E.BYPASS" };
                // Matrices straight into fragments; but f32 cannot be transposed on the way.
                let matrices = if source == "conv_mma_weight_grad" { "LDSM.16.MT88.4" } else { "LDSM.16.M88.4" };
                let matrices = if entry.contains("weight_grad_tf32") { "LDS" } else { matrices };
                for wanted in [product, copy, matrices] {
                    assert!(code.contains(wanted), "no {wanted} in {entry}");
                }
            }
        }
    }
}
