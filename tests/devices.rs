//! What the program makes of drivers: missing, broken, old, without a GPU; and that the engine's driver layer keeps the
//! CUDA driver's rules. The drivers are stubs made from `devices/libcuda.c` by the C compiler.
#![cfg(target_os = "linux")]

#[path = "common/program.rs"]
#[allow(dead_code)]
mod program;

use std::{env, io::Write, path::Path, process::Command};

use program::{Ran, command, ran};

/// A folder with a libcuda compiled by these flags; `None`, said loudly, where there is no C compiler.
fn driver(flags: &[&str]) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/devices/libcuda.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-o"]).arg(folder.path().join("libcuda.so.1"));
    match cc.args(flags).arg(source).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(folder)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: a test of drivers: cc: {error}");
            None
        }
    }
}

/// Runs the program where the loader finds libraries in `folder`, NVRTC is as `nvrtc` says, and nothing is cached.
fn unfreeze(arguments: &str, folder: &Path, variables: &[(&str, &Path)]) -> Ran {
    let mut command = command(arguments, &[]);
    let absent = folder.join("absent");
    command.env("LD_LIBRARY_PATH", folder).env("UNFREEZE_CACHE", &absent).env("UNFREEZE_NVRTC", &absent);
    command.env_remove("UNFREEZE_KERNELS").envs(variables.iter().copied());
    ran(command.output().unwrap())
}

const BENCH: &str = "bench forward --arch resnet20 --size 8 --batch-size 2 --rounds 2 --json";

/// `devices` gives the reason, `--device cuda:0` fails by it, `auto` computes on the processor and says so where there
/// seems to be a GPU.
fn refused(folder: &Path, reason: &str, is_a_problem: bool) {
    let devices = unfreeze("devices", folder, &[]).succeeded();
    assert!(devices.out.contains("cpu: ") && devices.out.contains(reason), "{}", devices.out);
    let devices = unfreeze("devices --json", folder, &[]).succeeded().objects();
    assert!(devices[1]["name"].as_str().unwrap().starts_with("cuda"), "{devices:?}");
    assert!(devices[1]["reason"].as_str().unwrap().contains(reason), "{devices:?}");

    let asked = unfreeze(&format!("{BENCH} --device cuda:0"), folder, &[]);
    assert_eq!(asked.code, 1, "{}", asked.err);
    assert!(asked.err.starts_with("error: device cuda") && asked.err.contains(reason), "{}", asked.err);

    let auto = unfreeze(&format!("{BENCH} --device auto"), folder, &[]).succeeded();
    assert_eq!(auto.err.contains("note: computing on the processor") && auto.err.contains(reason), is_a_problem);
    assert_eq!(auto.objects().len(), 1);
}

#[test]
fn no_driver() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "NVIDIA's driver (libcuda.so.1) is not found; install it, or use --device cpu", false);
}

#[test]
fn a_file_that_is_no_library() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), "text").unwrap();
    refused(folder.path(), "is not found", false);
}

#[test]
fn drivers_that_cannot_be_used() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&[], "libcuda.so.1 is no complete NVIDIA driver: it lacks cuInit", false),
        (&["-DPARTS=1", "-DINIT=100"], "is installed but finds no GPU", false),
        (&["-DPARTS=1"], "it lacks cuDriverGetVersion", false),
        (&["-DPARTS=1", "-DINIT=34"], "CUDA_ERROR_STUB_LIBRARY (34)", false),
        (&["-DPARTS=1", "-DINIT=803"], "restart the machine", true),
        (&["-DPARTS=1", "-DINIT=4711"], "failed: CUDA error 4711", true),
        (&["-DPARTS=2", "-DVERSION=11040"], "supports CUDA 11.4, and 12.0 is needed; install driver 525", true),
        (&["-DPARTS=2", "-DCOUNT=0"], "finds no GPU", false),
        (&["-DPARTS=2"], "it lacks cuCtxSetCurrent", false),
        (&["-DPARTS=3", "-DCAPABILITY=70"], "Fake GPU 0 has compute capability 7.0, and 7.5 (Turing)", true),
        (&["-DPARTS=3", "-DCAPABILITY=110"], "Fake GPU 0 (11.0) is newer than the kernels", true),
        (&["-DPARTS=3"], "NVRTC, which compiles the kernels for a driver of CUDA 13.0, is not found", true),
        (&["-DPARTS=3", "-DVERSION=12040"], "pip install nvidia-cuda-nvrtc-cu12==12.9.*", true),
    ];
    for (flags, reason, is_a_problem) in cases {
        let Some(folder) = driver(flags) else { return };
        refused(folder.path(), reason, *is_a_problem);
    }
}

#[test]
fn ordinals_beyond_the_last_are_named() {
    let Some(folder) = driver(&["-DPARTS=3", "-DCOUNT=2"]) else { return };
    let asked = unfreeze(&format!("{BENCH} --device cuda:2"), folder.path(), &[]);
    assert!(asked.code == 1 && asked.err.contains("the last of 2 is cuda:1"), "{}", asked.err);
}

/// Without NVRTC, and with a folder of compiled kernels that does not hold any.
#[test]
fn a_folder_without_kernels_is_named() {
    let Some(folder) = driver(&["-DPARTS=3"]) else { return };
    let kernels = folder.path().join("kernels");
    let asked = unfreeze(&format!("{BENCH} --device cuda:0"), folder.path(), &[("UNFREEZE_KERNELS", &kernels)]);
    assert_eq!(asked.code, 1);
    assert!(
        asked.err.contains("holds no compiled kernels") && asked.err.contains("unfreeze kernels build"),
        "{}",
        asked.err
    );
}

/// An NVRTC whose machine code the driver would refuse is not taken.
#[test]
fn a_compiler_newer_than_the_driver_is_named() {
    let newer = unfreeze::device::cuda::all_nvrtc().into_iter().find(|nvrtc| nvrtc.version().0 > 12);
    let (Some(nvrtc), Some(folder)) = (newer, driver(&["-DPARTS=3", "-DVERSION=12040"])) else { return };
    let devices = unfreeze("devices", folder.path(), &[("UNFREEZE_NVRTC", nvrtc.path())]).succeeded();
    assert!(devices.out.contains("too new for the driver") && devices.out.contains("nvrtc-cu12"), "{}", devices.out);
}

/// Runs `test` of this program again, where the loader finds `folder`.
fn again(test: &str, folder: &Path, variables: &[(&str, &str)]) {
    let mut program = Command::new(env::current_exe().unwrap());
    program.args(["--ignored", "--exact", "--nocapture", test]).env("LD_LIBRARY_PATH", folder);
    program.envs(variables.iter().copied());
    let output = program.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[cfg(feature = "cuda")]
mod hardware {
    use std::sync::Arc;

    use unfreeze::{
        Device, DeviceName, Error, Tensor,
        device::cuda::{Driver, GraphId, Hardware, Image, Launch, MemoryInfo, Prebuilt, gpus},
    };

    use super::{again, driver};

    const ELF: &[u8] = b"\x7fELF and so on";

    fn open() -> Hardware {
        let gpus = gpus().unwrap();
        assert_eq!((gpus.len(), gpus[0].name.as_str(), gpus[0].capability), (1, "Fake GPU 0", (8, 0)));
        Hardware::open(&gpus[0]).unwrap()
    }

    fn params(input: u64, count: u32, factor: u32, output: u64) -> Vec<u8> {
        [&input.to_ne_bytes()[..], &count.to_ne_bytes(), &factor.to_ne_bytes(), &output.to_ne_bytes()].concat()
    }

    const LAUNCH: Launch = Launch { grid: [1; 3], block: [32, 1, 1], shared: 0, cooperative: false, cluster: [1; 3] };

    #[test]
    fn the_drivers_rules_are_kept() {
        let Some(folder) = driver(&["-DPARTS=3"]) else { return };
        // A folder with an index of no kernels, so that no compiler is needed.
        let kernels = tempfile::tempdir().unwrap();
        Prebuilt::create(kernels.path()).unwrap().save().unwrap();
        let kernels = ("UNFREEZE_KERNELS", kernels.path().to_str().unwrap());
        for variables in [&[kernels][..], &[kernels, ("LIBCUDA_EAGER", "1")]] {
            again("hardware::memory_and_kernels", folder.path(), variables);
            again("hardware::input_beside_kernels", folder.path(), variables);
            again("hardware::graphs", folder.path(), variables);
            again("hardware::failures", folder.path(), variables);
            again("hardware::tensors_on_a_device", folder.path(), variables);
        }
    }

    #[test]
    #[ignore = "run by the_drivers_rules_are_kept"]
    fn memory_and_kernels() {
        let gpu = Arc::new(open());
        let properties = gpu.properties();
        assert_eq!((properties.multiprocessors, properties.shared_per_block), (4, 99 << 10));
        let (a, b) = (gpu.alloc(1000).unwrap(), gpu.alloc(1000).unwrap());
        assert_eq!(gpu.memory().unwrap(), MemoryInfo { free: (64 << 20) - 2000, total: 64 << 20 });
        let mut bytes: Vec<u8> = (0..250).collect();
        let expected = bytes.clone();
        gpu.upload(a, &bytes).unwrap();
        // What was handed over may change.
        bytes.fill(0);
        gpu.copy(a, b + 8, 250).unwrap();
        gpu.fill(b + 100, 7, 3).unwrap();
        gpu.download(b + 8, &mut bytes).unwrap();
        assert_eq!((&bytes[..92], &bytes[92..95], &bytes[95..]), (&expected[..92], &[7; 3][..], &expected[95..]));

        let module = gpu.load(Image::Cubin(ELF)).unwrap();
        let sum = gpu.function(module, "sum").unwrap();
        let attributes = gpu.attributes(sum).unwrap();
        assert_eq!((attributes.registers, attributes.shared_bytes, attributes.max_threads), (32, 1024, 1024));
        // From another thread, with more shared memory than a kernel may have unasked.
        let thread = std::thread::spawn({
            let gpu = gpu.clone();
            move || {
                let launch = Launch { shared: 90 << 10, ..LAUNCH };
                gpu.launch(sum, &launch, &params(a, 250, 2, b)).unwrap();
                gpu.launch(sum, &Launch { cooperative: true, ..launch }, &params(a, 250, 2, b)).unwrap();
            }
        });
        thread.join().unwrap();
        let mut result = [0; 8];
        gpu.download(b, &mut result).unwrap();
        assert_eq!(u64::from_ne_bytes(result), 2 * (0..250).sum::<u64>());
        gpu.synchronize().unwrap();
        gpu.free(a);
        gpu.free(b);
    }

    /// Batches come in through two slots; the copy of one overtakes no kernel that reads the one before.
    #[test]
    #[ignore = "run by the_drivers_rules_are_kept"]
    fn input_beside_kernels() {
        let gpu = open();
        let module = gpu.load(Image::Cubin(ELF)).unwrap();
        let sum = gpu.function(module, "sum").unwrap();
        let output = gpu.alloc(8 * 40).unwrap();
        let mut expected = Vec::new();
        for batch in 0..40u64 {
            // Larger and larger, past what the slots hold at first.
            let bytes = vec![batch as u8 + 1; 40_000 * (1 + batch as usize / 2)];
            let slot = batch as usize % 2;
            let input = gpu.stage(slot, &bytes).unwrap();
            gpu.launch(sum, &LAUNCH, &params(input, bytes.len() as u32, 3, output + 8 * batch)).unwrap();
            gpu.unstage(slot).unwrap();
            expected.push(3 * (batch + 1) * bytes.len() as u64);
        }
        let mut sums = vec![0u64; 40];
        gpu.download(output, bytemuck::cast_slice_mut(&mut sums)).unwrap();
        assert_eq!(sums, expected);
        assert!(gpu.stage(2, &[0]).unwrap_err().to_string().contains("no input slot 2"));
        gpu.free(output);
    }

    /// What is captured runs at replays, in order; what cannot be is refused before it reaches the driver.
    #[test]
    #[ignore = "run by the_drivers_rules_are_kept"]
    fn graphs() {
        let gpu = open();
        let module = gpu.load(Image::Cubin(ELF)).unwrap();
        let sum = gpu.function(module, "sum").unwrap();
        let [input, copy, output] = [1000, 1000, 8].map(|bytes| gpu.alloc(bytes).unwrap());
        let result = || {
            let mut bytes = [0; 8];
            gpu.download(output, &mut bytes).unwrap();
            u64::from_ne_bytes(bytes)
        };
        gpu.fill(output, 0, 8).unwrap();
        gpu.begin_capture().unwrap();
        gpu.copy(input, copy, 500).unwrap();
        gpu.fill(copy + 500, 1, 500).unwrap();
        gpu.launch(sum, &LAUNCH, &params(copy, 1000, 2, output)).unwrap();
        // Memory may be allocated, and other threads do as they like.
        let later = gpu.alloc(100).unwrap();
        std::thread::scope(|scope| scope.spawn(|| assert_eq!(result(), 0)).join().unwrap());
        let refused = [
            gpu.upload(input, &[0]),
            gpu.download(input, &mut [0]),
            gpu.stage(0, &[0]).map(drop),
            gpu.synchronize(),
            gpu.replay(GraphId(1)),
        ];
        for error in refused.map(Result::unwrap_err) {
            assert!(error.to_string().contains("while a graph is captured"), "{error}");
        }
        assert!(gpu.begin_capture().unwrap_err().to_string().contains("captured already"));
        let graph = gpu.end_capture().unwrap();
        for value in [3, 7] {
            gpu.upload(input, &[value; 1000]).unwrap();
            gpu.replay(graph).unwrap();
            assert_eq!(result(), 2 * (500 * u64::from(value) + 500));
        }
        gpu.forget(graph);
        assert!(gpu.replay(graph).unwrap_err().to_string().contains("a graph that is not there"));
        // One that is still there when the GPU is left goes with it.
        gpu.begin_capture().unwrap();
        gpu.end_capture().unwrap();
        [input, copy, output, later].into_iter().for_each(|address| gpu.free(address));
    }

    #[test]
    #[ignore = "run by the_drivers_rules_are_kept"]
    fn failures() {
        let gpu = open();
        let whole = gpu.alloc(40 << 20).unwrap();
        let error = gpu.alloc(30 << 20).unwrap_err();
        let Error::OutOfMemory { device, requested, free, total } = &error else { panic!("{error}") };
        assert_eq!((device.as_str(), *requested, *free, *total), ("cuda:0", 30 << 20, 24 << 20, 64 << 20));
        assert!(matches!(gpu.stage(0, &vec![0; 30 << 20]), Err(Error::OutOfMemory { .. })));
        gpu.free(whole);
        gpu.stage(0, &vec![0; 30 << 20]).unwrap();

        let text = |error: Error| error.to_string();
        assert!(text(gpu.load(Image::Cubin(b"no ELF")).unwrap_err()).contains("CUDA_ERROR_INVALID_IMAGE (200)"));
        let module = gpu.load(Image::Cubin(ELF)).unwrap();
        assert!(text(gpu.function(module, "other").unwrap_err()).contains("finding the kernel other failed"));
        let fault = gpu.function(module, "fault").unwrap();
        let large = Launch { block: [1024, 2, 1], ..LAUNCH };
        assert!(text(gpu.launch(fault, &large, &params(0, 0, 0, 0)).unwrap_err()).contains("launching fault failed"));

        // A kernel that fails shows later, and says which it was.
        gpu.launch(fault, &LAUNCH, &params(0, 0, 0, 0)).unwrap();
        let message = text(gpu.synchronize().unwrap_err());
        assert!(
            message.starts_with("device cuda:0: waiting for the GPU failed: CUDA_ERROR_ILLEGAL_ADDRESS (700)"),
            "{message}"
        );
        assert!(message.contains("launched last was fault") && message.contains("any more"), "{message}");
        assert!(text(gpu.alloc(8).unwrap_err()).contains("ILLEGAL_ADDRESS"));
        // After that the driver gives nothing back; the process is at its end.
        std::mem::forget(gpu);
    }

    /// Through all layers: what is live is counted, and the device gives everything back, which the driver checks.
    #[test]
    #[ignore = "run by the_drivers_rules_are_kept"]
    fn tensors_on_a_device() {
        let (device, note) = Device::open_with_note(DeviceName::Auto, 2).unwrap();
        assert_eq!((device.to_string().as_str(), note), ("cuda:0", None));
        let values: Vec<f32> = (0..1000).map(|value| value as f32).collect();
        let tensor = Tensor::new(values.clone(), [10, 100], &device).unwrap();
        let zeros = Tensor::zeros([7], &device).unwrap();
        assert_eq!(tensor.to_vec::<f32>().unwrap(), values);
        assert_eq!(zeros.to_vec::<f32>().unwrap(), [0.0; 7]);
        assert_eq!(device.memory().live, 4028);
        let error = Tensor::zeros([16 << 20], &device).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { requested, .. } if requested == 64 << 20), "{error}");
        assert!(error.to_string().contains("64.0 MiB asked for"), "{error}");
    }
}
