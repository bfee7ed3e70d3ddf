//! Whether PTX files can be run here, and what is in them: `cargo run --example inspect kernels.ptx …`.

use simt::Module;

fn main() {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        let module = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        match module.and_then(|ptx| Module::parse(&ptx).map_err(|e| e.to_string())) {
            Ok(module) => {
                for entry in module.entries() {
                    let (params, shared) = (module.param_bytes(entry), module.static_shared(entry));
                    let [params, shared] = [params, shared].map(|n| n.unwrap_or(0));
                    println!("{path}: {entry}: {params} bytes of parameters, {shared} bytes of static shared memory");
                }
            }
            Err(error) => {
                println!("{path}: {error}");
                failed = true;
            }
        }
    }
    std::process::exit(i32::from(failed));
}
