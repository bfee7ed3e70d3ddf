//! The kernels compile for every architecture that they are for, within its limits; the compiler, its cache and kernels
//! compiled ahead of time. No GPU is needed, but NVRTC is: without it these tests are skipped, loudly, and with
//! `UNFREEZE_REQUIRE_NVRTC=1` they fail.

#[path = "common/program.rs"]
#[allow(dead_code)]
mod program;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use unfreeze::{
    device::cuda::{Compiler, F32_ARCHS, ImageKind, Layout, Nvrtc, Prebuilt, Resources, Source, all_nvrtc, find_nvrtc},
    ops::kernels::SOURCES,
};

/// Every NVRTC at hand; none is said loudly, or fails.
fn compilers() -> Vec<Arc<Nvrtc>> {
    let found = all_nvrtc();
    if found.is_empty() {
        let reason = find_nvrtc(None).unwrap_err();
        assert!(
            !env::var("UNFREEZE_REQUIRE_NVRTC").is_ok_and(|value| value == "1"),
            "UNFREEZE_REQUIRE_NVRTC: {reason}"
        );
        // Past the macros, whose output the test runner keeps to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: tests of GPU kernels: {reason}");
    }
    found.into_iter().map(Arc::new).collect()
}

/// Threads of each kernel's largest block, from its launch bounds.
fn launch_bounds(ptx: &str) -> BTreeMap<&str, u32> {
    let kernels = ptx.split(".entry ").skip(1);
    kernels
        .filter_map(|text| {
            let (name, rest) = text.split_once('(')?;
            let (_, bounds) = rest.split_once('{')?.0.split_once(".maxntid ")?;
            let threads =
                bounds.lines().next()?.split(',').map(|n| n.trim().parse::<u32>().ok()).product::<Option<_>>()?;
            Some((name.trim(), threads))
        })
        .collect()
}

/// No register is spilled, nothing lies in local memory, blocks fit a multiprocessor.
#[test]
fn every_kernel_compiles_and_fits() {
    let nvrtcs = compilers();
    let all = SOURCES.iter().flat_map(|source| source.archs.iter().map(move |arch| (*source, *arch)));
    let work: Vec<_> =
        nvrtcs.iter().flat_map(|nvrtc| all.clone().map(move |(source, arch)| (nvrtc, source, arch))).collect();
    let (next, table) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((nvrtc, source, arch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let kernels = check(nvrtc, source, arch);
                    table.lock().unwrap().extend(kernels);
                }
            });
        }
    });
    // A row to each kernel and compiler, the registers for each architecture.
    let mut rows: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for kernel in table.into_inner().unwrap() {
        let row = (kernel.entry, kernel.nvrtc, kernel.threads, kernel.shared);
        rows.entry(row).or_default().insert(kernel.arch, kernel.registers);
    }
    let mut archs = rows.values().flat_map(|row| row.keys().copied()).collect::<Vec<_>>();
    archs.sort_by_key(|arch| arch.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().ok());
    archs.dedup();
    let heads: String = archs.iter().map(|arch| format!("{arch:>8}")).collect();
    println!("{:<36} {:<6} {:>8} {:>7}{heads}  registers", "kernel", "NVRTC", "threads", "shared");
    for ((entry, nvrtc, threads, shared), row) in rows {
        let registers = |arch| row.get(arch).map_or("-".to_owned(), u32::to_string);
        let registers: String = archs.iter().map(|arch| format!("{:>8}", registers(arch))).collect();
        println!("{entry:<36} {nvrtc:<6} {threads:>8} {shared:>7}{registers}");
    }
}

/// What a kernel takes.
struct Kernel<'a> {
    entry: String,
    arch: &'a str,
    nvrtc: String,
    registers: u32,
    threads: u32,
    shared: u32,
}

/// Compiles a source, if the compiler knows the architecture, and checks each of its kernels.
fn check<'a>(nvrtc: &Arc<Nvrtc>, source: &Source, arch: &'a str) -> Vec<Kernel<'a>> {
    let version = format!("{}.{}", nvrtc.version().0, nvrtc.version().1);
    if !nvrtc.supports(arch) {
        return Vec::new();
    }
    let compiled = Compiler::new().nvrtc(nvrtc.clone()).compile(source, arch).unwrap_or_else(|error| panic!("{error}"));
    let mut found: Vec<_> = compiled.resources.iter().map(|kernel| kernel.entry.as_str()).collect();
    let mut declared = source.entries.to_vec();
    found.sort_unstable();
    declared.sort_unstable();
    assert_eq!(found, declared, "kernels of {}", source.name);
    let bounds = launch_bounds(&compiled.ptx);
    let kernel = |kernel: &Resources| {
        let what = format!("{kernel:?} for {arch} by NVRTC {version}");
        assert!(kernel.spills == 0 && kernel.stack == 0, "local memory: {what}");
        let threads = *bounds.get(kernel.entry.as_str()).unwrap_or_else(|| panic!("no __launch_bounds__: {what}"));
        // Registers are dealt out by eights, to whole warps.
        let registers = kernel.registers.next_multiple_of(8) * threads.next_multiple_of(32);
        assert!(registers <= 65536 && kernel.shared <= 48 << 10, "{threads} threads do not fit: {what}");
        let (entry, nvrtc) = (kernel.entry.clone(), version.clone());
        Kernel { entry, arch, nvrtc, registers: kernel.registers, threads, shared: kernel.shared }
    };
    compiled.resources.iter().map(kernel).collect()
}

/// A source of this test's own.
const EXAMPLE: Source = Source {
    name: "example",
    text: r#"#include "common.cuh"
struct ExampleParams { const float* input; float* output; u32 count; float factor; };
extern "C" __global__ void __launch_bounds__(128) scale(const ExampleParams p) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.output[i] = p.input[i] * p.factor;
}"#,
    archs: F32_ARCHS,
    entries: &["scale"],
    layouts: &[Layout {
        name: "ExampleParams",
        size: 24,
        fields: &[("input", 0), ("output", 8), ("count", 16), ("factor", 20)],
    }],
};

#[test]
fn machine_code_comes_with_what_it_takes() {
    for nvrtc in compilers() {
        for arch in F32_ARCHS.iter().filter(|arch| nvrtc.supports(arch)) {
            let kernels = check(&nvrtc, &EXAMPLE, arch);
            assert!(kernels.len() == 1 && kernels[0].entry == "scale" && kernels[0].threads == 128);
        }
        let compiled = Compiler::new().nvrtc(nvrtc).compile(&EXAMPLE, "sm_90a").unwrap();
        assert!(compiled.cubin.starts_with(b"\x7fELF") && compiled.ptx.contains(".target sm_90a"));
        assert_eq!(launch_bounds(&compiled.ptx)["scale"], 128);
    }
}

#[test]
fn mistakes_are_named_and_cut_short() {
    for nvrtc in compilers() {
        let compiler = Compiler::new().nvrtc(nvrtc);
        let refused = |source: Source, arch| compiler.compile(&source, arch).unwrap_err().to_string();
        let text = refused(Source { text: "int x = ;", layouts: &[], ..EXAMPLE }, "sm_80");
        assert!(text.contains("example.cu for sm_80 by NVRTC") && text.contains("example.cu(1): error"), "{text}");
        let text = refused(EXAMPLE, "sm_1");
        assert!(text.contains("gpu-architecture"), "{text}");
        let many: String = (0..100).map(|line| format!("undeclared{line};\n")).collect();
        let text = refused(Source { text: many.leak(), layouts: &[], ..EXAMPLE }, "sm_80");
        assert!(text.lines().count() <= 22 && text.ends_with("lines more"), "{text}");
        // A struct that the kernel and the launcher lay out differently does not compile.
        const OTHER: &[(&str, usize)] = &[("input", 0), ("output", 8), ("count", 20), ("factor", 16)];
        const LAYOUTS: &[Layout] = &[Layout { name: "ExampleParams", size: 24, fields: OTHER }];
        let text = refused(Source { layouts: LAYOUTS, ..EXAMPLE }, "sm_80");
        assert!(text.contains("ExampleParams.count"), "{text}");
    }
}

#[test]
fn many_devices_of_a_process_compile_once() {
    let Some(nvrtc) = compilers().into_iter().next() else { return };
    let cache = tempfile::tempdir().unwrap();
    let image = || {
        let compiler = Compiler::new().nvrtc(nvrtc.clone()).cache(Some(cache.path().to_owned()));
        compiler.image(&EXAMPLE, "sm_80", ImageKind::Ptx, None).unwrap()
    };
    let images: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(image)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.iter().all(|other| Arc::ptr_eq(other, &images[0])));
    assert!(std::str::from_utf8(&images[0]).unwrap().contains(".version"));
}

/// Another process that compiles the example into the cache `folder`.
fn process(folder: &Path) -> Child {
    let mut program = Command::new(env::current_exe().unwrap());
    program.args(["--ignored", "--exact", "--nocapture", "in_another_process"]).env("CACHE_OF_THE_TEST", folder);
    program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The hash of what it found or compiled.
fn result(process: Child) -> String {
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().find_map(|line| Some(line.split_once("image ")?.1.to_owned())).expect(&text)
}

#[test]
#[ignore = "run by a_cache_is_shared_by_processes_and_repaired"]
fn in_another_process() {
    let folder = env::var_os("CACHE_OF_THE_TEST").expect("run by another test");
    let compiler = Compiler::new().kernels(None).cache(Some(folder.into()));
    let image = compiler.image(&EXAMPLE, "sm_86", ImageKind::Cubin, None).unwrap();
    println!("image {}", blake3::hash(&image));
    // A second time, from memory.
    assert!(Arc::ptr_eq(&image, &compiler.image(&EXAMPLE, "sm_86", ImageKind::Cubin, None).unwrap()));
}

#[test]
fn a_cache_is_shared_by_processes_and_repaired() {
    if compilers().is_empty() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("kernels");
    // Two at once, into a folder that is not there yet.
    let (first, second) = (process(&folder), process(&folder));
    let image = result(first);
    assert_eq!(result(second), image);
    let names = program::names(&folder);
    assert!(names.len() == 1 && names[0].starts_with("example.sm_86.") && names[0].ends_with(".cubin"), "{names:?}");

    let entry = folder.join(&names[0]);
    let whole = fs::read(&entry).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0x10;
    for bad in [&damaged[..], &whole[..whole.len() / 2], &[]] {
        fs::write(&entry, bad).unwrap();
        assert_eq!(result(process(&folder)), image);
        assert_eq!(fs::read(&entry).unwrap(), whole, "repaired");
    }
    // An entry is used: another image under a right checksum is believed.
    let header = whole.windows(4).position(|bytes| bytes == b"\x7fELF").unwrap();
    let other = b"another image";
    let magic = &whole[..header - blake3::OUT_LEN];
    fs::write(&entry, [magic, blake3::hash(other).as_bytes(), other].concat()).unwrap();
    assert_eq!(result(process(&folder)), blake3::hash(other).to_string());

    // Where no cache can be, kernels are compiled each time.
    let blocked = root.path().join("file");
    fs::write(&blocked, "a file").unwrap();
    assert_eq!(result(process(&blocked.join("kernels"))), image);
}

#[test]
fn kernels_compiled_ahead_of_time_need_no_compiler() {
    let Some(nvrtc) = compilers().into_iter().next() else { return };
    let folder = tempfile::tempdir().unwrap();
    let compiled = Compiler::new().nvrtc(nvrtc.clone()).compile(&EXAMPLE, "sm_80").unwrap();
    let mut prebuilt = Prebuilt::create(folder.path()).unwrap();
    prebuilt.add(&EXAMPLE, "sm_80", &compiled, nvrtc.version()).unwrap();
    prebuilt.save().unwrap();
    let compiler = Compiler::new().kernels(Some(folder.path().to_owned()));
    let image = compiler.image(&EXAMPLE, "sm_80", ImageKind::Cubin, Some(13000)).unwrap();
    assert_eq!(&*image, compiled.cubin);
    let error = compiler.image(&EXAMPLE, "sm_86", ImageKind::Cubin, Some(13000)).unwrap_err().to_string();
    assert!(error.contains("holds no example for sm_86"), "{error}");
}

#[test]
fn the_program_lists_and_builds() {
    let listed = program::unfreeze("kernels list --json", &[]).succeeded().objects();
    assert_eq!(listed.len(), SOURCES.len());
    let unknown = program::unfreeze("kernels build --arch sm_7 --out {}", &[Path::new("unused")]);
    assert!(unknown.code == 2 && unknown.err.contains("--arch: there are no kernels for 'sm_7'"), "{}", unknown.err);
    let (Some(nvrtc), Some(source)) = (compilers().into_iter().next(), SOURCES.first()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let arch = source.archs[0];
    let arguments = format!("kernels build --arch {arch} --nvrtc {{}} --out {{}}");
    let built = program::unfreeze(&arguments, &[nvrtc.path(), folder.path()]).succeeded();
    assert!(built.out.contains(source.entries[0]), "{}", built.out);
    for source in SOURCES.iter().filter(|source| source.archs.contains(&arch)) {
        Prebuilt::open(folder.path()).unwrap().read(source, arch).unwrap();
    }
}
